"""Features as files, `features/v1`: .npy, .safetensors or Parquet, for other programs to use."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stillroom import backbone, eval_ssl  # lazy packages: torch is imported when the protocol runs
from stillroom.eval_ssl.config import EvaluationConfig, FileFormat, Outcome
from stillroom.eval_ssl.extras import import_pyarrow
from stillroom.images import Source, read_labelled, read_unlabelled
from stillroom.runs.results import Results


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(EvaluationConfig):
    """Write frozen features to files, for other programs to use."""

    task: ClassVar[str] = "features"

    test: Path | None = None  # type: ignore[assignment]  # nothing is classified
    """A second folder of images, with the same classes; None: TRAIN alone."""
    labels: bool = True
    """TRAIN and TEST have a folder per class; without, every image below them is read, unlabelled."""
    format: FileFormat = "npy"
    """npy and safetensors come with a table of paths and labels; parquet (extra `parquet`) includes them."""

    def check(self) -> None:
        """Refuse flags that cannot work, whatever the images are."""
        super().check()
        if self.format == "parquet":
            import_pyarrow()

    def read_images(self) -> tuple[Source, Source | None]:
        """List the images, labelled or not; a single class is enough."""
        if self.labels:
            train = read_labelled(self.train, columns=self.columns)
            test = None if self.test is None else read_labelled(self.test, train.classes, self.columns)
        else:
            train = read_unlabelled(self.train, self.columns)
            test = None if self.test is None else read_unlabelled(self.test, self.columns)
        return self.limited(train), None if test is None else self.limited(test)

    def check_images(self, train: Source, test: Source | None) -> None:
        """Refuse nothing: any images have features."""

    def evaluate(self, features: "eval_ssl.FeatureSets", run: "backbone.Run") -> Outcome:
        """Write the features; there is no metric."""
        from stillroom.eval_ssl.export import export_features

        sets = {"train": features.train} | ({} if features.test is None else {"test": features.test})

        def write_files(folder: Path) -> None:
            for name, feature_set in sets.items():
                export_features(folder, name, feature_set, self.format)

        shapes = {f"{name}.{self.format}": list(each.features.shape) for name, each in sets.items()}
        protocol = f"features/v1 {features.description}"
        return Outcome(protocol=protocol, metrics={}, extra={"files": shapes}, write_files=write_files)

    @classmethod
    def report(cls, directory: Path, results: Results) -> str:
        """The files and the shapes of their arrays."""
        shapes = results.extra["files"]
        return "\n".join(f"{directory / name}: {n} x {d} float32" for name, (n, d) in shapes.items())
