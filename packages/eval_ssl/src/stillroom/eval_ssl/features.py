"""One pass over images: frozen features in the order of the files, cached on disk for the next evaluation."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from stillroom.backbone import Backbone, Features, Normalize, weights_sha256
from stillroom.backbone.cache_folder import cache_directory
from stillroom.backbone.flags import Amp, OnBroken, Workers
from stillroom.images import EvaluationView, ImageDataset, Source
from stillroom.images.loaders import EvaluationBatches, build_loader
from stillroom.images.picture import describe_decoding
from stillroom.images.prefetch import prefetch
from stillroom.runs import Run
from stillroom.runs.hardware import autocast, exact_float32, hold_weights
from stillroom.runs.progress import Progress
from stillroom.runs.results import DatasetRecord
from stillroom.runs.store import Store, optional_cache, store_bytes

_VERSION = 1  # of the cache: to be raised when the same net would see other pixels or give other features
_SAME = 1e-5  # relative to a feature's largest entry; batches of unequal size differ by 4e-6


@dataclass(frozen=True)
class FeatureSet:
    """Features (n, d) of the n images that could be read, and error messages of the others.

    Features from the cache are memory-mapped, and not to be written to.

    Attributes:
        features: one row for each of `files`.
        files: the images that could be read.
        broken: a sentence for each image that could not be read.
        feature_sources: the columns of each feature source, by its name; see `Extractor`.
    """

    features: Float[Tensor, "n d"]
    files: Source
    broken: tuple[str, ...]
    feature_sources: dict[str, slice]

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """Class numbers; -1 where the files have none."""
        return torch.tensor(self.files.labels or [-1] * len(self.files))


@dataclass(frozen=True, kw_only=True)
class FeatureSets:
    """A net, and its features of TRAIN and TEST.

    Attributes:
        backbone, head: the net, on the run's device.
        train: features to learn from.
        test: features to classify; None where there is one folder alone.
        datasets: records for results.json, by role.
        description: the part of the protocol id that names feature point, input and subset.
    """

    backbone: Backbone
    head: nn.Module | None
    train: FeatureSet
    test: FeatureSet | None
    datasets: dict[str, DatasetRecord]
    description: str

    @property
    def queries(self) -> FeatureSet:
        """The images to classify: TEST, or TRAIN where it is alone."""
        return self.train if self.test is None else self.test

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of both sets, by class number."""
        return self.train.files.classes

    @property
    def broken(self) -> list[str]:
        """Error messages of all images that could not be read."""
        return [*self.train.broken, *(() if self.test is None else self.test.broken)]

    def accuracy_by_class(self, correct: Bool[Tensor, " m"]) -> dict[str, float]:
        """The fraction of correct predictions for each class among the queries.

        Args:
            correct: whether each query was classified correctly.
        """
        targets = self.queries.labels
        return {self.classes[i]: float(correct[targets == i].double().mean()) for i in sorted(set(targets.tolist()))}


class Extractor(nn.Module):
    """Pixels -> one frozen feature per image, float32: from one feature source of the net, or several concatenated.

    Args:
        backbone: in its own input specification; it is set to eval mode.
        head: applied to the pooled feature; None: no head.
        levels: the feature sources: None is the pooled feature, a number the spatial mean of that level's map, -1: the
            last.
        amp: number format of forward passes; other than `none`, for a backbone that `hold_weights` has made.

    Attributes:
        feature_sources: the columns of each, by name: `pooled`, `level-1`, ...
        dim: columns in all, d.

    Raises:
        ValueError: no such level, a duplicate level, or a head on a level.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module | None = None,
        levels: Sequence[int | None] = (None,),
        amp: Amp = "none",
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.levels, self.amp = backbone, head, tuple(levels), amp
        self.normalize = Normalize(backbone.spec.input)
        self.eval()
        self.feature_sources: dict[str, slice] = {}
        self.dim = 0
        for level in self.levels:
            name, width = self._name(level), self._width(level)
            if name in self.feature_sources:
                raise ValueError(f"{name} is requested twice: name each level once")
            self.feature_sources[name] = slice(self.dim, self.dim + width)
            self.dim += width

    def _name(self, level: int | None) -> str:
        num_levels = len(self.backbone.spec.levels)
        if level is None:
            return "pooled"
        if not -num_levels <= level < num_levels:
            raise ValueError(f"there is no level {level}: {self.backbone.spec.name} has {num_levels} levels")
        if self.head is not None:
            raise ValueError("--head takes the pooled feature: leave out --level and --more-levels")
        return f"level{level - num_levels if level >= 0 else level}"  # counted from the last, so each has one name

    def _width(self, level: int | None) -> int:
        if level is not None:
            return self.backbone.spec.levels[level].channels
        if self.head is None:
            return self.backbone.spec.dim
        return [layer for layer in self.head.modules() if isinstance(layer, nn.Linear)][-1].out_features

    @torch.no_grad()
    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        with exact_float32(), autocast(self.amp, images.device):
            features = self.backbone(self.normalize(images))
        return torch.cat([self._select(features, level) for level in self.levels], dim=1)

    def _select(self, features: Features, level: int | None) -> Float[Tensor, "b _"]:
        if level is not None:
            return features.maps[level].float().mean(dim=(2, 3))
        pooled = features.pooled.float()
        return pooled if self.head is None else self.head(pooled)


def extract_features(
    backbone: Backbone,
    files: Source,
    run: Run,
    *,
    batch_size: int = 64,
    amp: Amp = "none",
    workers: Workers = 1,
    on_broken: OnBroken = "refuse",
    head: nn.Module | None = None,
    levels: Sequence[int | None] = (None,),
    cache: bool = True,
    as_stored: bool = False,
    label: str = "features",
) -> FeatureSet:
    """Extract features with a backbone in its own input specification, as float32, in eval mode.

    The images go through the net in fixed batches of `batch_size`, distributed over the processes, so the number of
    processes changes no bit. Every process returns all features. An interrupted pass resumes where it stopped, and a
    finished pass with the same weights, input, feature, batch size and files is read from the cache.

    Args:
        backbone: on the run's device.
        files: images, labelled or not.
        run: this process.
        batch_size: images per forward pass.
        amp: number format of the forward passes; other than `none`, they are channels-last too.
        workers: processes that decode images.
        on_broken: see `OnBroken`.
        head, levels: see `Extractor`; the head on the run's device.
        cache: use `$STILLROOM_CACHE/features`, by default below ~/.cache/stillroom. A user's own module, whose code has
            no hash, is never cached; nor is anything where that folder cannot be written.
        as_stored: read images as they are stored, not turned as their EXIF tags say.
        label: of the progress bar.

    Raises:
        ValueError: no readable image, or features that are not finite, with the image's name; see also `Extractor`.
    """
    if not len(files):
        raise ValueError(f"there are no images below {files.root}")
    held = backbone
    if amp != "none":
        held = hold_weights(backbone, amp, run.device).to(memory_format=torch.channels_last)
    extractor = Extractor(held, head, levels, amp).to(run.device)

    # The cached rows, if any; the loader gives the batches that have missing rows.
    store = None
    if cache and not backbone.spec.name.startswith("module/"):
        with optional_cache(run, cache_directory("features")):
            store = open_store(extractor, files, run, batch_size, as_stored)
    missing = None if store is None else store.missing
    together = 1 if store is None else store.chunk_rows // batch_size  # batches of one file, which one process writes
    run.wait()  # every process reads which rows are missing before one of them writes
    dataset = ImageDataset(files, EvaluationView(backbone.spec.input), on_broken=on_broken, as_stored=as_stored)
    batches = EvaluationBatches(len(files), batch_size, run, mask=missing, together=together)
    loader = prefetch(build_loader(dataset, batches, workers), run.device)
    progress = Progress(len(files), run, label, done=0 if store is None else len(files) - store.num_missing)

    # The pass: finite features go into the cache, or into memory.
    parts: list[tuple[Tensor, Tensor]] = []
    unread: list[int] = []
    infinite: list[int] = []
    with nullcontext() if store is None else store:
        for batch in progress.over(loader):
            progress.skip(batch.broken)
            unread += batch.broken_indices
            if not len(batch):
                continue
            features = extractor(batch.images.to(run.device)).cpu()
            finite = torch.isfinite(features).all(dim=1)
            infinite += batch.indices[~finite].tolist()
            if store is None:
                parts.append((batch.indices, features))
            else:
                store.write(batch.indices[finite], features[finite])

    # What went wrong in any process.
    broken = sorted({sentence for one in run.gather(progress.broken) for sentence in one})
    refuse_infinite(sorted(i for one in run.gather(infinite) for i in one), files)
    readable = torch.ones(len(files), dtype=torch.bool)
    readable[[i for one in run.gather(unread) for i in one]] = False
    if not readable.any():
        raise ValueError(f"no image of {files.root} could be read, for instance: {broken[0]}")

    # The rows of all processes, in the order of the files.
    if store is None:
        values = torch.zeros(len(files), extractor.dim)
        for indices, rows in (part for one in run.gather(parts) for part in one):
            values[indices] = rows
    else:
        values = store.values
    if not readable.all():
        values, files = values[readable], files.subset(readable.nonzero().flatten().tolist())
    return FeatureSet(values, files, tuple(broken), extractor.feature_sources)


def open_store(extractor: Extractor, files: Source, run: Run, batch_size: int, as_stored: bool) -> Store:
    """Open the cache of these features of these files, or create it empty."""
    root = cache_directory("features")
    record = cache_record(extractor, files, run, batch_size, as_stored)
    store = Store.open(root, record, len(files), extractor.dim, run, "float32", batch_size=batch_size)
    if run.is_main and store.num_missing == len(files):
        size = store_bytes(len(files), extractor.dim, "float32") / 2**20
        print(f"features: {len(files)} images x {extractor.dim} float32 = {size:.1f} MiB in {root}", file=sys.stderr)
    return store


def cache_record(
    extractor: Extractor, files: Source, run: Run, batch_size: int, as_stored: bool = False
) -> dict[str, Any]:
    """What cached features depend on. Its hash names the cache, so names and values here stay as they are."""
    spec, head = extractor.backbone.spec, extractor.head
    return {
        "version": _VERSION,
        "weights": weights_sha256(extractor.backbone.net),
        "net": [spec.name, spec.arguments],
        "input": asdict(spec.input),
        "feature": spec.feature,
        "readings": list(extractor.feature_sources),
        "head": None if head is None else [repr(head), weights_sha256(head)],
        "files": files.stamp,
        "batch_size": batch_size,  # batch 1 and batch 64 differ in the last digits, and so do devices
        "device": run.device.type,
        **({} if extractor.amp == "none" else {"amp": extractor.amp}),
        **describe_decoding(as_stored=as_stored),
    }


def is_constant(features: Float[Tensor, "n d"]) -> bool:
    """Whether all rows are equal up to rounding: the backbone has collapsed."""
    first = features[:1]
    tolerance = _SAME * first.abs().max()
    return all(bool(((part - first).abs().max()) <= tolerance) for part in (features[-1:], features))


def refuse_infinite(indices: list[int], files: Source) -> None:
    """Refuse features that are not finite.

    Args:
        indices: the rows that are not finite.
        files: the images of all rows.

    Raises:
        ValueError: with their number and the first image.
    """
    if indices:
        first = files.where(indices[0])
        raise ValueError(f"{len(indices)} images give features that are not finite, the first is {first}")
