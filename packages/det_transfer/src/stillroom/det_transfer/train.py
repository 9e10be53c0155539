"""The main path of a run: images, initial weights, training by the backend, predictions, outputs."""

from dataclasses import dataclass
from pathlib import Path

from stillroom.backbone import Backbone, load_checkpoint
from stillroom.backbone.initial import initial_backbone, refuse_size
from stillroom.det_transfer.backends import find_backend
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData
from stillroom.det_transfer.record import finish
from stillroom.finetune import lifecycle
from stillroom.images.loaders import TrainingBatches
from stillroom.runs import Run
from stillroom.runs.inputs import names_input


@dataclass(frozen=True, kw_only=True)
class Prepared(lifecycle.Prepared):
    """What a run begins with: its images, with boxes."""

    data: DetectionData


def prepare(config: DetectConfig, run: Run, saved: Path | None) -> Prepared:
    """Read the images and the initial weights of a single run; nothing is written.

    Args:
        config: of a single run: one checkpoint, one seed.
        run: this process.
        saved: the initial weights that a resumed run kept; None: those of `--checkpoint`.

    Raises:
        ValueError: invalid input.
    """
    backend = find_backend(config.backend)
    data = backend.read(config)
    inputs = {"classes": names_input(data.classes)}
    if saved is not None:
        backbone, _ = load_checkpoint(saved)
        return Prepared(backbone=backbone, records=data.records, inputs=inputs, data=data)
    backbone = initial_backbone(config.name, config.like, config.seed)
    if config.framework_config is None:
        TrainingBatches(len(data.train), config.batch_size, 1, config.seed, run)  # does the batch fit the data?
        check_image_sizes(backbone)
    backend.preflight(config, run, data, backbone)
    return Prepared(backbone=backbone, records=data.records, inputs=inputs, data=data)


def check_image_sizes(backbone: Backbone) -> None:
    """Check that a net takes images of any size, by a forward pass; some take only the size they were trained on.

    Raises:
        ValueError: a stride that is not a power of two, or the net's own error.
    """
    strides = [level.stride for level in backbone.spec.levels]
    if odd := [stride for stride in strides if stride & (stride - 1)]:
        raise ValueError(f"{backbone.spec.name} has maps of stride {odd[0]}: a detector needs powers of two")
    side = max([32, *strides])
    refuse_size(backbone, 2 * side, 3 * side, "a detector needs a net that takes any size")


def train(config: DetectConfig, run: Run, prepared: Prepared, resume: bool) -> None:
    """Train the detector, predict the validation images, take the backbone out of it, and write the outputs."""
    data, backbone = prepared.data, prepared.backbone
    trained = find_backend(config.backend).train(config, run, data, backbone, resume)
    predictions = trained.predict(data.val)
    if run.is_main:
        returned = trained.bridge.from_framework(trained.model.state_dict(), backbone)
        loaded = trained.bridge.count(trained.model)
        finish(config, data, returned, predictions, loaded, trained.notes, trained.seconds)
    run.wait()
