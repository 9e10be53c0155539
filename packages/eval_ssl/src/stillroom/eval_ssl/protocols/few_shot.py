"""Few-shot classification, `few-shot/v2`: logistic regression from 1 to 16 images per class, several draws each."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stillroom import backbone, eval_ssl  # lazy packages: torch is imported when the protocol runs
from stillroom.backbone.checks import above, at_least
from stillroom.eval_ssl.config import MeasurementConfig, Outcome
from stillroom.images import Source
from stillroom.runs.results import Results, format_table


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(MeasurementConfig):
    """Logistic regression from a few images per class, averaged over several draws of them."""

    task: ClassVar[str] = "few-shot"

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Training images per class; smaller draws are part of the larger ones."""
    draws: int = 5
    """Draws per number of images, with the seeds `--seed`, `--seed` + 1 and so on."""
    inverse_penalty: float = 1.0
    """C of C x summed cross-entropy + |W|^2 / 2, as in scikit-learn."""

    def check(self) -> None:
        """Refuse flags that cannot work, whatever the images are."""
        super().check()
        at_least(self, 1, "draws")
        if not self.shots or min(self.shots) < 1:
            raise ValueError(f"--shots is {list(self.shots)}: pass numbers of images per class, from 1")
        above(self, 0, "inverse_penalty")

    def check_images(self, train: Source, test: Source | None) -> None:
        """Refuse more shots than a class has images."""
        import torch

        from stillroom.eval_ssl.logreg import draw_shots

        draw_shots(torch.tensor(train.labels or ()), max(self.shots), self.seed, train.classes)

    def evaluate(self, features: "eval_ssl.FeatureSets", run: "backbone.Run") -> Outcome:
        """Fit a classifier to every draw; mean and standard deviation of top-1 per number of shots."""
        from stillroom.eval_ssl.logreg import FEW_SHOT_TOLERANCE, few_shot
        from stillroom.eval_ssl.probe import accuracy_of
        from stillroom.runs.hardware import float64_device

        # Top-1 of every draw.
        device, classes = float64_device(run.device), features.classes
        train_x, test_x = (part.features.to(device) for part in (features.train, features.queries))
        train_y, targets = (part.labels.to(device) for part in (features.train, features.queries))

        def top1(shots: int, seed: int) -> float:
            logits = few_shot(
                train_x,
                train_y,
                test_x,
                len(classes),
                shots,
                seed,
                inverse_penalty=self.inverse_penalty,
                classes=classes,
            )
            return accuracy_of(logits, targets)

        accuracies = {shots: [top1(shots, self.seed + draw) for draw in range(self.draws)] for shots in self.shots}

        # The outcome: their means and standard deviations, and the protocol id.
        means = {f"top1_s{shots}": statistics.mean(values) for shots, values in accuracies.items()}
        spreads = {
            f"top1_s{shots}_std": statistics.stdev(values) for shots, values in accuracies.items() if len(values) > 1
        }
        protocol = (
            f"few-shot/v2 {features.description} unit-length logreg C={self.inverse_penalty:g} "
            f"tolerance={FEW_SHOT_TOLERANCE:g} draws={self.draws}"
        )
        metrics = means | spreads

        def draw_figures(folder: Path) -> None:
            self.draw_comparison(folder, {self.checkpoint[0]: metrics})

        extra = {"draws": {str(shots): values for shots, values in accuracies.items()}}
        return Outcome(protocol=protocol, metrics=metrics, extra=extra, draw_figures=draw_figures)

    @classmethod
    def report(cls, directory: Path, results: Results) -> str:
        """A row for each number of shots; last the directory with the accuracy of the largest."""
        curve = accuracy_curve(results.metrics)
        rows = [
            [str(shots), f"{mean:.1f}", f"{spread:.1f}" if f"top1_s{shots}_std" in results.metrics else "-"]
            for shots, (mean, spread) in curve.items()
        ]
        table = format_table(["images per class", "few-shot top-1, %", "standard deviation over draws, %"], rows)
        shots = max(curve)
        return f"{table}\n{directory}: {curve[shots][0]:.1f} % top-1 with {shots} images per class"

    @classmethod
    def table_metrics(cls, metrics: Mapping[str, float]) -> dict[str, str]:
        """Mean and standard deviation of top-1 for each number of shots."""
        columns = {}
        for name in metrics:
            shots = name.removeprefix("top1_s").removesuffix("_std")
            kind = "standard deviation" if name.endswith("_std") else "few-shot top-1"
            columns[name] = f"{kind}, {shots} {'image' if shots == '1' else 'images'} per class"
        return columns

    @classmethod
    def headline(cls, metrics: Mapping[str, float]) -> str:
        """Mean top-1 for the most shots."""
        return f"top1_s{max(accuracy_curve(metrics))}"

    @classmethod
    def draw_comparison(cls, folder: Path, metrics: Mapping[str, dict[str, float]]) -> None:
        """shots.png: accuracy over images per class, a line per checkpoint."""
        from stillroom.eval_ssl.figures import draw_shots

        curves = {name: accuracy_curve(values) for name, values in metrics.items()}
        draw_shots(folder / "shots.png", curves, "few-shot")


def accuracy_curve(metrics: Mapping[str, float]) -> dict[int, tuple[float, float]]:
    """Images per class -> mean and standard deviation of top-1, percent."""
    counts = [int(name.removeprefix("top1_s")) for name in metrics if not name.endswith("_std")]
    return {k: (100 * metrics[f"top1_s{k}"], 100 * metrics.get(f"top1_s{k}_std", 0.0)) for k in counts}
