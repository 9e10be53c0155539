"""SimReg's live linear evaluation: the classifier learns from random crops, made anew in each epoch."""

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stillroom.backbone import ImageDataset, InputSpec, Run, weights_sha256
from stillroom.backbone.atomic import write_file
from stillroom.backbone.loading import build_loader
from stillroom.backbone.progress import Progress
from stillroom.backbone.store import cache_directory, cache_key
from stillroom.eval_ssl.features import Extractor, FeatureSet, refuse_infinite
from stillroom.eval_ssl.probe import (
    Point,
    Recipe,
    Rows,
    SgdProbes,
    Standardise,
    batches,
    check_converged,
    check_features,
)

_SCALE = (0.08, 1.0)  # of the image's area
_VERSION = 1  # of what is kept: to be raised where the same run would learn something else


class CropView:
    """A random crop of 8 to 100 % of the image, resized, and a flip: PIL image -> uint8 (3, size, size)."""

    def __init__(self, spec: InputSpec) -> None:
        from torchvision.transforms import v2  # noqa: PLC0415  # no other evaluation needs torchvision

        interpolation = v2.InterpolationMode(spec.interpolation)
        crop = v2.RandomResizedCrop(spec.size, _SCALE, interpolation=interpolation, antialias=spec.antialias)
        self.steps = v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip()])

    def __call__(self, image: Image.Image) -> Tensor:
        return self.steps(image)


@dataclass(frozen=True)
class LiveParts:
    """One epoch's steps cut into parts of a fixed size, dealt out to the processes: their number changes nothing."""

    steps: list[Rows]
    epoch: int
    part: int
    run: Run

    def of(self, step: Rows) -> list[Tensor]:
        """This process's parts of a step."""
        return list(step.rows.split(self.part)[self.run.rank :: self.run.world_size])

    def __len__(self) -> int:
        return sum(len(self.of(step)) for step in self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, int(row)) for row in part] for step in self.steps for part in self.of(step))


def train_live(
    extractor: Extractor,
    train: FeatureSet,
    test_x: Float[Tensor, "m d"],
    point: Point,
    recipe: Recipe,
    run: Run,
    *,
    batch_size: int = 64,
    workers: int = 1,
    keep: bool = True,
) -> tuple[Float[Tensor, "m c"], Callable[[], None]]:
    """Train a linear classifier on random crops of the training images, and classify the test images.

    Steps, order and rates are those of `train_probes`; what standardises the features are the statistics of the centre
    crops. Views are drawn by (seed, epoch, image), images go through the net in fixed parts: the number of processes
    changes no bit. A run that was stopped goes on after its last whole epoch.

    Args:
        extractor: on the run's device, with one reading.
        train: features of the centre crops, and the images.
        test_x: features to classify, on the run's device.
        point: the one setting.
        recipe: of the classifier.
        run: this process.
        batch_size: images per forward pass.
        workers: processes that decode images.
        keep: the state of each whole epoch in `$STILLROOM_CACHE/live`.

    Returns:
        Logits, and what forgets the state, to be called once by the main process when they are safe.

    Raises:
        ValueError: constant features, features that are not finite, a run that diverged.
    """
    check_features(train.features, test_x)
    scale = Standardise.fit(train.features.to(run.device), unit=point.unit)
    labels, num_classes = train.labels, len(train.files.classes)
    probes = SgdProbes(extractor.dim, num_classes, [point], recipe, run.device)
    backbone = extractor.backbone
    record = {
        "version": _VERSION,
        "weights": weights_sha256(backbone.net),
        "net": [backbone.spec.name, backbone.spec.arguments, backbone.spec.feature, asdict(backbone.spec.input)],
        "readings": list(extractor.readings),
        "head": None if extractor.head is None else [repr(extractor.head), weights_sha256(extractor.head)],
        "files": train.files.stamp,
        "recipe": repr((point, recipe, batch_size)),
        "device": run.device.type,
    }
    file = cache_directory("live") / f"{cache_key(record)}.pt"
    first = 0
    if keep and file.exists():
        saved = torch.load(file, map_location=run.device, weights_only=True)
        first, probes.state = saved["epoch"], saved["state"]
    run.wait()  # every process has read it before one writes
    dataset = ImageDataset(train.files, CropView(backbone.spec.input), seed=recipe.seed)
    progress = Progress(len(labels) * recipe.epochs, run, "live", done=len(labels) * first)
    for epoch in range(first, recipe.epochs):
        steps = list(batches(len(labels), replace(recipe, epochs=epoch + 1), epoch))
        parts = LiveParts(steps, epoch, batch_size, run)
        loader = iter(progress.over(build_loader(dataset, parts, workers), close=False))
        for step in steps:
            mine = [extractor(next(loader).images.to(run.device)).cpu() for _ in parts.of(step)]
            dealt = run.gather(mine)
            whole = [dealt[place % run.world_size][place // run.world_size] for place in range(sum(map(len, dealt)))]
            x = torch.cat(whole)
            refuse_infinite(step.rows[~torch.isfinite(x).all(dim=1)].tolist(), train.files)
            probes.step(scale(x.to(run.device)), labels[step.rows].to(run.device), step.epoch)
        assert next(loader, None) is None, "every part belongs to a step"
        if not bool(torch.isfinite(probes.state["weight"]).all()):
            raise ValueError(
                f"the probe of learning rate {point.lr:g} diverged in epoch {epoch + 1}: give smaller --lrs"
            )
        if keep and run.is_main:
            buffer = io.BytesIO()
            torch.save({"epoch": epoch + 1, "state": probes.state}, buffer)
            write_file(file, buffer.getvalue())
    progress.close()
    logits = check_converged(probes.linear().predict(scale(test_x), 0), point)
    return logits, partial(file.unlink, missing_ok=True) if keep else lambda: None
