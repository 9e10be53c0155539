"""One pass over images: frozen features in the order of the files, kept on disk for the next evaluation."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from stillroom.backbone import (
    Backbone,
    EvaluationView,
    Features,
    ImageDataset,
    ImageFiles,
    Normalize,
    Run,
    weights_sha256,
)
from stillroom.backbone.flags import OnBroken
from stillroom.backbone.loading import EvaluationBatches, build_loader
from stillroom.backbone.progress import Progress
from stillroom.backbone.store import Store, cache_directory, store_bytes

_VERSION = 1  # of what is kept: to be raised where the same net would see or give something else
_SAME = 1e-5  # of a feature's largest entry; batches of unequal size differ by 4e-6


@dataclass(frozen=True)
class FeatureSet:
    """Features (n, d) of the n images that could be read, and the sentences about those that could not.

    Features that come from the cache are mapped from the disk, and not to be written to.

    Attributes:
        features: one row for each of `files`.
        files: the images that could be read.
        broken: why the others could not.
        readings: the columns of each reading of the net, by its name; see `Extractor`.
    """

    features: Float[Tensor, "n d"]
    files: ImageFiles
    broken: tuple[str, ...]
    readings: dict[str, slice]

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """Class numbers; -1 where the files have none."""
        return torch.tensor(self.files.labels or [-1] * len(self.files))


class Extractor(nn.Module):
    """Pixels -> one frozen feature per image, float32: one reading of the net, or several side by side.

    Args:
        backbone: in its own input specification; it is set to eval mode.
        head: what the pooled feature goes through, or None.
        levels: instead of the pooled feature the spatial means of these levels' maps, -1: the last, None: the pooled
            feature; several stand side by side.

    Attributes:
        readings: the columns of each, by name: `pooled`, `level-1`, ...
        dim: columns in all, d.

    Raises:
        ValueError: no such level, a level twice; a head on a level.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module | None = None, levels: Sequence[int | None] = (None,)
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.levels = backbone, head, tuple(levels)
        self.normalize = Normalize(backbone.spec.input)
        self.eval()
        self.readings: dict[str, slice] = {}
        self.dim = 0
        for level in self.levels:
            name, width = self._name(level), self._width(level)
            if name in self.readings:
                raise ValueError(f"{name} is read twice: name each level once")
            self.readings[name] = slice(self.dim, self.dim + width)
            self.dim += width

    def _name(self, level: int | None) -> str:
        known = self.backbone.spec.levels
        if level is None:
            return "pooled"
        if not -len(known) <= level < len(known):
            raise ValueError(f"there is no level {level}: {self.backbone.spec.name} has {len(known)} levels")
        if self.head is not None:
            raise ValueError("--head reads the pooled feature: leave out --level and --more-levels")
        return f"level{level - len(known) if level >= 0 else level}"  # counted from the last, so each has one name

    def _width(self, level: int | None) -> int:
        if level is not None:
            return self.backbone.spec.levels[level].channels
        if self.head is None:
            return self.backbone.spec.dim
        return [layer for layer in self.head.modules() if isinstance(layer, nn.Linear)][-1].out_features

    @torch.no_grad()
    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # else convolutions round to 10 bits on GPUs
            features = self.backbone(self.normalize(images))
        return torch.cat([self._read(features, level) for level in self.levels], dim=1)

    def _read(self, features: Features, level: int | None) -> Float[Tensor, "b _"]:
        if level is not None:
            return features.maps[level].float().mean(dim=(2, 3))
        pooled = features.pooled.float()
        return pooled if self.head is None else self.head(pooled)


def extract_features(
    backbone: Backbone,
    files: ImageFiles,
    run: Run,
    *,
    batch_size: int = 64,
    workers: int = 1,
    on_broken: OnBroken = "refuse",
    head: nn.Module | None = None,
    levels: Sequence[int | None] = (None,),
    keep: bool = True,
    label: str = "features",
) -> FeatureSet:
    """Run a backbone over images in its own input specification, float32, in eval mode.

    The images go through the net in fixed batches of `batch_size`, dealt out to the processes: the number of processes
    changes no bit. Every process returns all features. A pass that was stopped goes on where it was, and one that was
    made before, of the same weights, input, feature, batch size and files, is not made again.

    Args:
        backbone: on the run's device.
        files: images, labelled or not.
        run: this process.
        batch_size: images per forward pass.
        workers: processes that decode images.
        on_broken: see `OnBroken`.
        head, levels: see `Extractor`; the head on the run's device.
        keep: in `$STILLROOM_CACHE/features`, by default below ~/.cache/stillroom; a module of the user's own, whose
            code has no hash, is never kept.
        label: of the progress bar.

    Raises:
        ValueError: no readable image, features that are not finite, with the image's name; see also
            `Extractor` and `Store.open`.
    """
    if not len(files):
        raise ValueError(f"there are no images below {files.root}")
    extractor = Extractor(backbone, head, levels).to(run.device)
    store = None
    if keep and not backbone.spec.name.startswith("module/"):
        store = open_store(extractor, files, run, batch_size)
    wanted = None if store is None else store.missing
    run.wait()  # every process has looked at what is missing before one of them writes
    dataset = ImageDataset(files, EvaluationView(backbone.spec.input), on_broken=on_broken)
    loader = build_loader(dataset, EvaluationBatches(len(files), batch_size, run, mask=wanted), workers)
    progress = Progress(len(files), run, label, done=0 if store is None else len(files) - store.num_missing)
    parts: list[tuple[Tensor, Tensor]] = []
    unread: list[int] = []
    infinite: list[int] = []
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
    broken = sorted({sentence for one in run.gather(progress.broken) for sentence in one})
    refuse_infinite(sorted(i for one in run.gather(infinite) for i in one), files)
    readable = torch.ones(len(files), dtype=torch.bool)
    readable[[i for one in run.gather(unread) for i in one]] = False
    if not readable.any():
        raise ValueError(f"no image of {files.root} could be read, for instance: {broken[0]}")
    if store is None:
        everything = torch.zeros(len(files), extractor.dim)
        for indices, rows in (part for one in run.gather(parts) for part in one):
            everything[indices] = rows
    else:
        everything = store.values
    if not readable.all():
        everything, files = everything[readable], files.subset(readable.nonzero().flatten().tolist())
    return FeatureSet(everything, files, tuple(broken), extractor.readings)


def open_store(extractor: Extractor, files: ImageFiles, run: Run, batch_size: int) -> Store:
    """The place on disk of these features of these files."""
    spec, head = extractor.backbone.spec, extractor.head
    root = cache_directory("features")
    record = {
        "version": _VERSION,
        "weights": weights_sha256(extractor.backbone.net),
        "net": [spec.name, spec.arguments],
        "input": asdict(spec.input),
        "feature": spec.feature,
        "readings": list(extractor.readings),
        "head": None if head is None else [repr(head), weights_sha256(head)],
        "files": files.stamp,
        "batch_size": batch_size,  # batch 1 and batch 64 differ in the last digits, and so do devices
        "device": run.device.type,
    }
    store = Store.open(root, record, len(files), extractor.dim, run, "float32")
    if run.is_main and store.num_missing == len(files):
        size = store_bytes(len(files), extractor.dim, "float32") / 2**20
        print(f"features: {len(files)} images x {extractor.dim} float32 = {size:.1f} MiB in {root}", file=sys.stderr)
    return store


def is_constant(features: Float[Tensor, "n d"]) -> bool:
    """Whether a backbone gives every image the same feature, but for the last digits."""
    first = features[:1]
    near = _SAME * first.abs().max()
    return all(bool(((part - first).abs().max()) <= near) for part in (features[-1:], features))


def refuse_infinite(places: list[int], files: ImageFiles) -> None:
    """Refuse features that are not finite, of these places among the files.

    Raises:
        ValueError: with their number and the name of the first.
    """
    if places:
        first = files.paths[places[0]]
        raise ValueError(f"{len(places)} images give features that are not finite, the first is {first}")
