"""What a run learns from, chooses by, and is tested on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stillroom.backbone import ImageFiles, Run, read_labelled
from stillroom.backbone.image_files import shuffled_by_class
from stillroom.cls_transfer.config import ClassifyConfig, check_sources
from stillroom.cls_transfer.datasets import Source, Splits, read_task


@dataclass(frozen=True)
class Sets:
    """Labelled images of the same classes.

    Attributes:
        train: to learn from.
        val: to choose by; None: nothing is chosen.
        test: touched once.
        words: what they are, for the protocol id.
    """

    train: ImageFiles
    val: ImageFiles | None
    test: ImageFiles
    words: str

    @property
    def by_role(self) -> dict[str, ImageFiles]:
        """Those that there are."""
        return {"train": self.train, "test": self.test} | ({} if self.val is None else {"val": self.val})

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each, by its role."""
        return {role: files.fingerprint for role, files in self.by_role.items()}

    def changed_since(self, fingerprints: Mapping[str, str]) -> Path | None:
        """The folder of the first one whose images are others than they were."""
        return next((f.root for role, f in self.by_role.items() if f.fingerprint != fingerprints.get(role)), None)


def read_sets(config: ClassifyConfig, run: Run) -> Sets:
    """The images of a single run.

    Raises:
        ValueError: see `read_labelled` and `read_task`; one class alone; parts that leave a class nothing.
    """
    splits = read_splits(config, run)
    train = splits.train
    if len(train.classes) < 2:
        raise ValueError(f"{train.root} holds one class, {train.classes[0]}: there is nothing to tell apart")
    words = [splits.words]
    if config.fraction is not None or config.shots is not None:
        train = draw(train, config)
        words.append(f"fraction={config.fraction:g}" if config.fraction is not None else f"shots={config.shots}")
    val: ImageFiles | None = None
    if config.choose == "best-on-test":
        val = splits.test
    elif config.val is not None:
        val = read_labelled(config.val, train.classes)
        words.append("val")
    elif config.held_out:
        train, val = hold_out(train, config)
        words.append(f"held-out={config.held_out:g}")
    return Sets(train, val, splits.test, " ".join(filter(None, words)))


def read_splits(config: ClassifyConfig, run: Run) -> Splits:
    """The whole training and test images.

    Raises:
        ValueError: see `check_sources`, `read_labelled` and `read_task`.
    """
    check_sources(config)
    if config.tasks:
        (task,) = config.tasks
        assert config.data is not None
        source = Source(
            data=config.data, run=run, seed=config.seed, dtd_split=config.dtd_split, per_class=config.caltech_per_class,
            first=config.caltech_first,
            partial=config.partial, download=config.download,
        )  # fmt: skip
        return read_task(task, source)
    assert config.train is not None and config.test is not None
    train = read_labelled(config.train)
    return Splits(train, read_labelled(config.test, train.classes), "")


def draw(files: ImageFiles, config: ClassifyConfig) -> ImageFiles:
    """A part of each class, drawn by the seed; smaller parts are parts of larger ones.

    Raises:
        ValueError: a share outside (0, 1], a number that a class does not have, or both.
    """
    if config.fraction is not None and config.shots is not None:
        raise ValueError("--fraction and --shots both say how much to learn from: give one of them")
    if config.fraction is not None and not 0 < config.fraction <= 1:
        raise ValueError(f"--fraction is {config.fraction}: it must lie in (0, 1]")
    kept: list[int] = []
    for label, order in shuffled_by_class(files.labels or (), config.seed).items():
        if config.fraction is not None:
            count = max(1, round(config.fraction * len(order)))
        else:
            assert config.shots is not None, "one of the two was given"
            count = config.shots
            if not 1 <= count <= len(order):
                raise ValueError(f"class {files.classes[label]} has {len(order)} images, --shots is {count}")
        kept += order[:count]
    return files.subset(sorted(kept))


def hold_out(files: ImageFiles, config: ClassifyConfig) -> tuple[ImageFiles, ImageFiles]:
    """What is left to learn from, and a share of each class to choose by, at least one image of it on either side.

    Raises:
        ValueError: a class with one image.
    """
    held: list[int] = []
    for label, order in shuffled_by_class(files.labels or (), config.seed).items():
        if len(order) < 2:
            raise ValueError(
                f"class {files.classes[label]} has one image to learn from, so none can be held out: "
                f"say --held-out 0, or give --val"
            )
        held += order[-min(max(1, round(config.held_out * len(order))), len(order) - 1) :]
    rest = sorted(set(range(len(files))) - set(held))
    return files.subset(rest), files.subset(sorted(held))
