"""A linear probe trained on augmented images (`--mode live`): random crops and flips, drawn anew in each epoch."""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.backbone import weights_sha256
from stillroom.backbone.atomic import write_file
from stillroom.backbone.cache_folder import cache_directory
from stillroom.backbone.flags import Workers
from stillroom.backbone.tensor_files import load_tensors
from stillroom.eval_ssl.config import Point
from stillroom.eval_ssl.features import Extractor, FeatureSet, refuse_infinite
from stillroom.eval_ssl.probe import (
    Minibatch,
    Recipe,
    SgdProbes,
    Standardise,
    batches,
    check_converged,
    check_features,
)
from stillroom.images import ImageDataset
from stillroom.images.loaders import build_loader
from stillroom.images.picture import describe_decoding
from stillroom.images.view import CropView
from stillroom.runs import Run
from stillroom.runs.progress import Progress
from stillroom.runs.store import cache_key, optional_cache

_MIN_SCALE = 0.08  # crop area over image area
_VERSION = 1  # of the saved state: to be raised when the same run would learn something else


@dataclass(frozen=True)
class MicroBatches:
    """A batch sampler for one epoch: its steps in micro-batches of a fixed size, distributed over the processes.

    The size does not depend on the number of processes, which therefore changes no bit.
    """

    steps: list[Minibatch]
    epoch: int
    size: int
    run: Run

    def local(self, step: Minibatch) -> list[Tensor]:
        """The rows of this process's micro-batches of a step."""
        return list(step.rows.split(self.size)[self.run.rank :: self.run.world_size])

    def __len__(self) -> int:
        return sum(len(self.local(step)) for step in self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, int(row)) for row in rows] for step in self.steps for rows in self.local(step))


def train_augmented(
    extractor: Extractor,
    train: FeatureSet,
    test_x: Float[Tensor, "m d"],
    point: Point,
    recipe: Recipe,
    run: Run,
    *,
    batch_size: int = 64,
    workers: Workers = 1,
    cache: bool = True,
) -> tuple[Float[Tensor, "m c"], Callable[[], None]]:
    """Train a linear classifier on random crops of the training images, and classify the test images.

    Steps, order and rates are those of `train_probes`; features are standardised by the statistics of the centre crops.
    Crops are drawn by (seed, epoch, image), and images go through the net in micro-batches of a fixed size: the number
    of processes changes no bit. An interrupted run resumes after its last full epoch.

    Args:
        extractor: on the run's device, with one feature source.
        train: features of the centre crops, and the images.
        test_x: features to classify, on the run's device.
        point: the one setting.
        recipe: how the classifier is trained.
        run: this process.
        batch_size: images per forward pass.
        workers: processes that decode images.
        cache: save the state after each epoch in `$STILLROOM_CACHE/live`.

    Returns:
        Logits, and a function that deletes the saved state, for the main process to call once the logits are stored.

    Raises:
        ValueError: constant features, features that are not finite, or a run that diverged.

    Reference: SimReg (Navaneet et al., BMVC 2021), linear evaluation.
    """
    # What is trained: one classifier of standardised features, on augmented images.
    check_features(train.features, test_x)
    scale = Standardise.fit(train.features.to(run.device), unit=point.unit, unbiased=recipe.as_released)
    labels, num_classes = train.labels, len(train.files.classes)
    probes = SgdProbes(extractor.dim, num_classes, [point], recipe, run.device)
    view = CropView(extractor.backbone.spec.input, _MIN_SCALE)
    dataset = ImageDataset(train.files, view, seed=recipe.seed, as_stored=recipe.as_released)

    # The state of an interrupted run with the same settings, if there is one.
    file = cache_directory("live") / f"{cache_key(state_record(extractor, train, point, recipe, run, batch_size))}.pt"
    first_epoch = 0
    if cache and os.path.exists(file):  # noqa: PTH110  # False, too, where the cache may not be entered
        advice = "remove it, and the probe is trained from its first epoch"
        state = load_tensors(file, advice=advice, map_location=run.device)
        first_epoch, probes.state = state["epoch"], state["state"]
    run.wait()  # every process has read it before one writes

    progress = Progress(len(labels) * recipe.epochs, run, "live", done=len(labels) * first_epoch)
    for epoch in range(first_epoch, recipe.epochs):
        # One epoch's images, each process loading its micro-batches.
        steps = list(batches(len(labels), replace(recipe, epochs=epoch + 1), epoch))
        micro_batches = MicroBatches(steps, epoch, batch_size, run)
        loader = iter(progress.over(build_loader(dataset, micro_batches, workers), close=False))
        for step in steps:
            # The features of the whole step, gathered in its order; every process takes the same step.
            local = [extractor(next(loader).images.to(run.device)).cpu() for _ in micro_batches.local(step)]
            gathered = run.gather(local)
            num_parts = sum(map(len, gathered))
            x = torch.cat([gathered[part % run.world_size][part // run.world_size] for part in range(num_parts)])
            refuse_infinite(step.rows[~torch.isfinite(x).all(dim=1)].tolist(), train.files)
            probes.step(scale(x.to(run.device)), labels[step.rows].to(run.device), step.epoch)
        assert next(loader, None) is None, "every micro-batch belongs to a step"

        # A checkpoint after each epoch that did not diverge.
        if not bool(torch.isfinite(probes.state["weight"]).all()):
            raise ValueError(
                f"the probe of learning rate {point.lr:g} diverged in epoch {epoch + 1}: pass smaller --lrs"
            )
        if cache and run.is_main:
            buffer = io.BytesIO()
            torch.save({"epoch": epoch + 1, "state": probes.state}, buffer)
            with optional_cache(run, file.parent):
                write_file(file, buffer.getvalue())
    progress.close()

    logits = check_converged(probes.linear().predict(scale(test_x), 0), point)
    is_saved = cache and os.path.exists(file)  # noqa: PTH110
    return logits, partial(file.unlink, missing_ok=True) if is_saved else lambda: None


def state_record(
    extractor: Extractor, train: FeatureSet, point: Point, recipe: Recipe, run: Run, batch_size: int
) -> dict[str, Any]:
    """What the saved state depends on. Its hash names the file, so names and values here stay as they are."""
    backbone = extractor.backbone
    point_text = (
        f"Point(lr={point.lr!r}, weight_decay={point.weight_decay!r}, reading={point.feature_source!r}, "
        f"unit={point.unit!r})"  # the fields as 0.4 named them
    )
    return {
        "version": _VERSION,
        "weights": weights_sha256(backbone.net),
        "net": [backbone.spec.name, backbone.spec.arguments, backbone.spec.feature, asdict(backbone.spec.input)],
        "readings": list(extractor.feature_sources),
        "head": None if extractor.head is None else [repr(extractor.head), weights_sha256(extractor.head)],
        "files": train.files.stamp,
        "recipe": f"({point_text}, {recipe!r}, {batch_size!r})",
        "device": run.device.type,
        **describe_decoding(as_stored=recipe.as_released),
        **({"as_released": True} if recipe.as_released else {}),
    }
