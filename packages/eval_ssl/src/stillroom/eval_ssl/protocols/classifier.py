"""What `linear` and `logreg` share: the scores of a classifier's logits, and the report of the grid it is from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stillroom import eval_ssl  # a lazy package: torch is imported when a protocol runs
from stillroom.eval_ssl.config import MeasurementConfig, Outcome
from stillroom.images import Source
from stillroom.runs.results import Results, format_table, percent

if TYPE_CHECKING:
    import torch

SETTINGS = {
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "reading": "feature source",
    "unit": "unit length",
    "penalty": "penalty",
}
"""The settings of a grid, as results.json and as tables name them."""
_ALWAYS_SHOWN = ("lr", "weight_decay", "penalty")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(MeasurementConfig):
    """A classifier of frozen features, whose settings are chosen on a held-out part of TRAIN."""

    title: ClassVar[str]
    """The protocol in words, for tables and figures."""

    def check_split(self, train: Source, held_out: float) -> None:
        """Refuse a class with too few images for a held-out part."""
        import torch

        from stillroom.eval_ssl.probe import split_stratified

        split_stratified(torch.tensor(train.labels or ()), held_out, self.seed, train.classes)

    def outcome(
        self,
        protocol: str,
        logits: "torch.Tensor",
        features: "eval_ssl.FeatureSets",
        extra: Mapping[str, Any],
        clean_up: Callable[[], None] | None = None,
    ) -> Outcome:
        """Score the logits (m, c) of all queries: top-1, top-5, accuracy per class, confusion matrix."""
        logits, targets = logits.cpu(), features.queries.labels
        order = logits.argsort(dim=1, descending=True, stable=True)
        rank = (order == targets[:, None]).int().argmax(dim=1)
        metrics = {"top1": float((rank == 0).double().mean()), "top5": float((rank < 5).double().mean())}

        def draw_figures(folder: Path) -> None:
            from stillroom.runs.figures import draw_confusion

            title = f"{self.title}: {self.checkpoint[0]}"
            draw_confusion(folder / "confusion.png", targets, logits.argmax(dim=1), features.classes, title)

        return Outcome(
            protocol=protocol,
            metrics=metrics,
            extra={**extra, "per_class": features.accuracy_by_class(rank == 0)},
            draw_figures=draw_figures,
            clean_up=clean_up,
        )

    @classmethod
    def report(cls, directory: Path, results: Results) -> str:
        """The grid with its held-out accuracies, the chosen settings, and what they score on TEST."""
        grid, chosen = results.extra["grid"], results.extra["chosen"]
        lines = []
        if grid:
            names = [name for name in chosen if name in _ALWAYS_SHOWN or len({point[name] for point in grid}) > 1]
            rows = [[*(_show(point[name]) for name in names), _held_out(point)] for point in grid]
            lines.append(format_table([*(SETTINGS[name] for name in names), "held-out top-1, %"], rows))
        lines.append("chosen: " + ", ".join(f"{SETTINGS[name]} {value}" for name, value in chosen.items()))
        if not results.extra.get("converged", True):
            worst = max(results.extra["fits"], key=lambda fit: fit["gradient"])
            lines.append(
                f"not converged: the largest gradient is {worst['gradient']:.1e} after {worst['iterations']} iterations"
            )
        top1, top5 = (percent(results.metrics, name) for name in ("top1", "top5"))
        return "\n".join([*lines, f"{directory}: {top1} % top-1, {top5} % top-5"])

    @classmethod
    def table_metrics(cls, metrics: Mapping[str, float]) -> dict[str, str]:
        """Top-1, the main metric, and top-5."""
        return {"top1": f"{cls.title} top-1", "top5": f"{cls.title} top-5"}


def join_settings(values: Sequence[float]) -> str:
    """Settings of a grid, for the protocol id."""
    return ",".join(f"{value:g}" for value in values)


def _show(setting: object) -> str:
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def _held_out(point: Mapping[str, Any]) -> str:
    return "diverged" if point["held_out_top1"] is None else f"{100 * point['held_out_top1']:.1f}"
