"""k-NN classification, `knn/v1`: the k nearest training images vote for the class of each query."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from stillroom import backbone, eval_ssl  # lazy packages: torch is imported when the protocol runs
from stillroom.backbone.checks import above
from stillroom.eval_ssl.config import (
    TEMPERATURE,
    Backend,
    Embedding,
    MeasurementConfig,
    Metric,
    Outcome,
    Vote,
    check_temperature,
)
from stillroom.eval_ssl.extras import import_umap
from stillroom.images import Source
from stillroom.runs.results import Results, format_table, percent

STANDARD_K = (1, 5, 10, 20, 100, 200)
HEADLINE_K = 20
_UMAP_IMAGES = 20  # fewer have no neighbourhoods to preserve


@dataclass(frozen=True, kw_only=True)
class KnnConfig(MeasurementConfig):
    """Exact k-NN classification of frozen features."""

    task: ClassVar[str] = "knn"
    name: ClassVar[str] = "v1"
    """Name of the recipe in the protocol id."""
    as_released: ClassVar[bool] = False
    """See `stillroom.eval_ssl.protocols.legacy_simreg`."""

    test: Path | None = None  # type: ignore[assignment]  # one folder alone can be evaluated too
    """Folder of images to classify, with the same classes; None: each TRAIN image by all others (leave-one-out)."""
    k: tuple[int, ...] | None = None
    """Numbers of neighbours, all in one pass; None: those of 1, 5, 10, 20, 100, 200 that TRAIN has images for."""
    vote: Vote = "majority"
    """Equal votes, or votes weighted by exp(similarity / temperature)."""
    temperature: float = TEMPERATURE
    """Temperature of the weighted vote."""
    metric: Metric = "cosine"
    """Similarity to rank neighbours by: cosine, or l2 for the Euclidean distance."""
    backend: Backend = "torch"
    """Library of the exact search; faiss needs the extra `faiss`."""
    memory_gib: float = 1.0
    """Upper bound of the similarities that the torch backend holds at once, GiB."""
    retrieval: bool = False
    """Also report the mean average precision of ranking all TRAIN images for each query."""
    embedding: Embedding = "pca"
    """Projection for the figure of all queries in a plane; umap needs the extra `umap`."""

    def check(self) -> None:
        """Refuse flags that cannot work, whatever the images are."""
        super().check()
        check_temperature(self.temperature)
        above(self, 0, "memory_gib")
        if self.figures and self.embedding == "umap":
            import_umap()

    def check_images(self, train: Source, test: Source | None) -> None:
        """Refuse a k that TRAIN is too small for, and a UMAP of too few images."""
        from stillroom.eval_ssl.neighbours import check_k

        if test is None and len(train) < 2:
            raise ValueError(f"leave-one-out needs two images, {self.train} has one")
        num_train = len(train) - (test is None)
        check_k(self.neighbour_counts(num_train), num_train)
        if self.figures and self.embedding == "umap" and len(test or train) < _UMAP_IMAGES:
            raise ValueError(f"--embedding umap needs {_UMAP_IMAGES} images, got {len(test or train)}")

    def neighbour_counts(self, num_train: int) -> tuple[int, ...]:
        """The values of k to vote with."""
        return self.k if self.k is not None else tuple(k for k in STANDARD_K if k <= num_train)

    def evaluate(self, features: "eval_ssl.FeatureSets", run: "backbone.Run") -> Outcome:
        """Search, vote, score."""
        from stillroom.eval_ssl.neighbours import nearest_neighbours, round_as_released
        from stillroom.eval_ssl.voting import predict, retrieval_map
        from stillroom.runs.progress import Progress

        # The neighbours of every query, for the largest k.
        train, queries, classes = features.train, features.queries, features.classes
        train_x, train_y, targets = train.features.to(run.device), train.labels.to(run.device), queries.labels
        test_x = None if features.test is None else features.test.features.to(run.device)
        if self.as_released:
            train_x, test_x = round_as_released(train_x), None if test_x is None else round_as_released(test_x)
        neighbour_counts = self.neighbour_counts(len(train_x) - (test_x is None))
        progress = Progress(len(targets), replace(run, world_size=1), "k-NN")  # every process searches for all queries
        similarities, indices = nearest_neighbours(
            train_x,
            test_x,
            max(neighbour_counts),
            metric=self.metric,
            backend=self.backend,
            memory_gib=self.memory_gib,
            progress=progress,
        )
        progress.close()
        similarities, indices = similarities.cpu(), indices.cpu()

        # Their votes, for every k.
        predictions = predict(
            similarities,
            train.labels[indices],
            targets,
            neighbour_counts,
            len(classes),
            vote=self.vote,
            temperature=self.temperature,
            tie_seed=self.seed if self.as_released else None,
        )

        # What the predictions score.
        by_k = {k: prediction.metrics() for k, prediction in predictions.items()}
        metrics = {f"{name}_k{k}": by_k[k][name] for name in ("top1", "top5", "mrr") for k in neighbour_counts}
        if self.retrieval:
            metrics["map"] = retrieval_map(
                train_x, train_y, test_x, targets, metric=self.metric, memory_gib=self.memory_gib
            )
        per_class = {
            str(k): features.accuracy_by_class(prediction.predicted == targets) for k, prediction in predictions.items()
        }

        # The outcome: protocol id, metrics and figures.
        vote = "majority" if self.vote == "majority" else f"weighted temperature={self.temperature:g}"
        leave_one_out = " leave-one-out" if features.test is None else ""
        released = " unit-length,float16 ties=random" if self.as_released else ""
        protocol = (
            f"knn/{self.name} vote={vote} similarity={self.metric}{released} {features.description}{leave_one_out}"
        )
        k = headline_k(neighbour_counts)

        def draw_figures(folder: Path) -> None:
            from stillroom.eval_ssl.figures import draw_knn

            net, predicted = self.checkpoint[0], predictions[k].predicted
            draw_knn(folder, features, indices, predicted, k=k, net=net, embedding=self.embedding, seed=self.seed)

        return Outcome(protocol=protocol, metrics=metrics, extra={"per_class": per_class}, draw_figures=draw_figures)

    @classmethod
    def report(cls, directory: Path, results: Results) -> str:
        """A row for each k; last the directory with the headline accuracy."""
        metrics, neighbour_counts = results.metrics, _ks(results.metrics)
        columns = {"top1": "k-NN top-1, %", "top5": "k-NN top-5, %", "mrr": "mean reciprocal rank, %"}
        rows = [[str(k), *(percent(metrics, f"{name}_k{k}") for name in columns)] for k in neighbour_counts]
        lines = [format_table(["k", *columns.values()], rows)]
        if "map" in metrics:
            lines.append(f"retrieval: mean average precision {percent(metrics, 'map')} %")
        k = headline_k(neighbour_counts)
        return "\n".join([*lines, f"{directory}: {percent(metrics, f'top1_k{k}')} % top-1 at k = {k}"])

    @classmethod
    def table_metrics(cls, metrics: Mapping[str, float]) -> dict[str, str]:
        """Top-1 for each k, and the mean average precision."""
        columns = {f"top1_k{k}": f"k-NN top-1, k = {k}" for k in _ks(metrics)}
        return columns | ({"map": "mean average precision"} if "map" in metrics else {})

    @classmethod
    def headline(cls, metrics: Mapping[str, float]) -> str:
        """Top-1 for the headline k."""
        return f"top1_k{headline_k(_ks(metrics))}"


def headline_k(neighbour_counts: tuple[int, ...]) -> int:
    """The k of the main metric: 20, or else the last one."""
    return HEADLINE_K if HEADLINE_K in neighbour_counts else neighbour_counts[-1]


def _ks(metrics: Mapping[str, float]) -> tuple[int, ...]:
    return tuple(int(name.removeprefix("top1_k")) for name in metrics if name.startswith("top1_k"))
