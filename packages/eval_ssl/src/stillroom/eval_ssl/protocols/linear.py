"""Linear probes, `linear/v1` and `linear/simreg-v1`: a grid of classifiers of frozen features, trained by SGD."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, ClassVar

from stillroom import backbone, eval_ssl  # lazy packages: torch is imported when the protocol runs
from stillroom.backbone.checks import at_least
from stillroom.eval_ssl.config import Mode, Outcome, Point, check_grid, check_held_out
from stillroom.eval_ssl.protocols.classifier import ClassifierConfig, join_settings
from stillroom.images import Source
from stillroom.runs.schedule import Cosine, Schedule


@dataclass(frozen=True, kw_only=True)
class LinearConfig(ClassifierConfig):
    """A grid of linear classifiers of frozen features; the best one is selected on a held-out part of TRAIN."""

    task: ClassVar[str] = "linear"
    title: ClassVar[str] = "linear probe"
    as_released: ClassVar[bool] = False
    """See `stillroom.eval_ssl.protocols.legacy_simreg`."""

    name: str = "v1"
    """Name of the recipe in the protocol id."""
    mode: Mode = "cached"
    """Train on features of fixed centre crops (cached), or of random crops and flips, new in each epoch (live)."""
    lrs: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Learning rates of the grid."""
    weight_decays: tuple[float, ...] = (0.0, 1e-4, 1e-3)
    """Weight decays of the grid."""
    more_levels: tuple[int, ...] = ()
    """Levels whose spatial means the grid tries too, beside the feature, -1: the last."""
    unit: tuple[bool, ...] = (False,)
    """Whether to L2-normalise features before they are standardised; pass both to try both."""
    held_out: float = 0.1
    """Fraction of each TRAIN class that the grid is compared on; the best point is then trained on all of TRAIN."""
    epochs: int = 40
    """Passes over the features."""
    probe_batch_size: int = 256
    """Features per step of the classifier."""
    schedule: Schedule = Cosine()  # noqa: RUF009  # frozen
    at_once: int | None = None
    """Points of the grid trained together, bounded by memory; None: all."""

    def check(self) -> None:
        """Refuse flags that cannot work, whatever the images are."""
        super().check()
        if not self.unit:
            raise ValueError("--unit is empty: pass False, True or both")
        points = self.grid(["pooled", *map(str, self.more_levels)])
        check_grid(points)
        check_held_out(self.held_out)
        at_least(self, 1, "epochs", "probe_batch_size")
        if self.at_once is not None:
            at_least(self, 1, "at_once")
        if (self.mode == "live" or self.as_released) and len(points) > 1:
            what = "legacy-simreg" if self.as_released else "--mode live"
            raise ValueError(f"{what} trains one setting, got {len(points)}: pass one value of each flag")

    def check_images(self, train: Source, test: Source | None) -> None:
        """Refuse a class that leaves nothing to hold out, where a grid is compared."""
        if len(self.grid(["pooled", *map(str, self.more_levels)])) > 1:
            self.check_split(train, self.held_out)

    @property
    def levels(self) -> tuple[int | None, ...]:
        """The feature, and the levels that the grid tries too."""
        return (self.level, *self.more_levels)

    @property
    def drops_last(self) -> bool:
        """Whether the last batch of an epoch is left out if it is partial."""
        return self.as_released and self.mode == "cached"

    def grid(self, feature_sources: list[str]) -> list[Point]:
        """Every combination of settings, those of one feature source together."""
        return [
            Point(lr=lr, weight_decay=weight_decay, feature_source=source, unit=unit)
            for source, unit, lr, weight_decay in product(feature_sources, self.unit, self.lrs, self.weight_decays)
        ]

    def evaluate(self, features: "eval_ssl.FeatureSets", run: "backbone.Run") -> Outcome:
        """Train the grid, choose a point, train it on all of TRAIN, classify TEST."""
        from stillroom.eval_ssl.augmented_probe import train_augmented
        from stillroom.eval_ssl.features import Extractor
        from stillroom.eval_ssl.probe import ProbeResult, Recipe, linear_probe
        from stillroom.runs.progress import Progress

        train, queries = features.train, features.queries
        sources = train.feature_sources
        points = self.grid(list(sources))
        recipe = Recipe(
            epochs=self.epochs,
            batch_size=self.probe_batch_size,
            schedule=self.schedule,
            seed=self.seed,
            as_released=self.as_released,
            drop_last=self.drops_last,
        )
        clean_up: Callable[[], None] | None = None

        # Live: one setting, on random crops that go through the net anew in each epoch.
        if self.mode == "live":
            extractor = Extractor(features.backbone, features.head, (self.level,)).to(run.device)
            logits, clean_up = train_augmented(
                extractor,
                train,
                queries.features.to(run.device),
                points[0],
                recipe,
                run,
                batch_size=self.batch_size,
                workers=self.workers,
                cache=self.cache,
            )
            result = ProbeResult(points[0], (), logits)

        # Cached: the whole grid, on the features of centre crops.
        else:
            progress = Progress(self.num_rows(points, train), run, "linear")
            result = linear_probe(
                train.features.to(run.device),
                train.labels.to(run.device),
                queries.features.to(run.device),
                len(features.classes),
                points,
                recipe,
                feature_sources=sources,
                held_out=self.held_out,
                at_once=self.at_once,
                progress=progress,
            )
            progress.close()

        # The outcome. A grid of one point has no held-out accuracies, and is stored as an empty list.
        parts = [
            f"linear/{self.name} mode={self.mode} {features.description}",
            f"readings={','.join(sources)}" if len(sources) > 1 else "",
            "|".join("unit-length,standardised" if unit else "standardised" for unit in self.unit),
            "variance=unbiased start=uniform" if self.as_released else "",
            "last-batch=dropped" if self.drops_last else "",
            f"schedule={describe_schedule(self.schedule)} epochs={self.epochs} batch={self.probe_batch_size}",
            f"lrs={join_settings(self.lrs)} weight-decays={join_settings(self.weight_decays)}",
            f"held-out={self.held_out:g}" if len(points) > 1 else "",
        ]
        grid = [
            point_record(point) | {"held_out_top1": top1 if top1 >= 0 else None}
            for point, top1 in zip(points, result.accuracies, strict=False)
        ]
        extra: dict[str, Any] = {"chosen": point_record(result.point), "grid": grid}
        if self.drops_last:
            extra["left_out_each_epoch"] = len(train.labels) % self.probe_batch_size
        return self.outcome(" ".join(filter(None, parts)), result.logits, features, extra, clean_up)

    def num_rows(self, points: list[Point], train: "eval_ssl.FeatureSet") -> int:
        """Features that go through classifiers in all, the last training on all of TRAIN included."""
        from stillroom.eval_ssl.probe import split_stratified

        if len(points) == 1:
            left_out = len(train.labels) % self.probe_batch_size if self.drops_last else 0
            return (len(train.labels) - left_out) * self.epochs
        kept, _ = split_stratified(train.labels, self.held_out, self.seed)
        per_source = len(self.lrs) * len(self.weight_decays)
        num_groups = len(points) // per_source * -(-per_source // (self.at_once or per_source))
        return (len(train.labels) + num_groups * len(kept)) * self.epochs


def point_record(point: Point) -> dict[str, Any]:
    """A point as results.json holds it, where its feature source is the `reading`."""
    record = asdict(point)
    return {"reading" if name == "feature_source" else name: value for name, value in record.items()}


def describe_schedule(schedule: Schedule) -> str:
    """A schedule with all its settings, for the protocol id."""
    return f"{type(schedule).__name__.lower()}({','.join(f'{k}={v}' for k, v in asdict(schedule).items())})"
