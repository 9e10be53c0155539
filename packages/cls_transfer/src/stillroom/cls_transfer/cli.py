"""`stillroom-cls-transfer finetune | scratch | legacy-kdep | smoke | resume | predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from stillroom.backbone.atomic import refuse_existing
from stillroom.backbone.flags import DeviceName, OnBroken, Workers
from stillroom.backbone.manifest import MANIFEST, read_manifest
from stillroom.cls_transfer.config import preflight
from stillroom.cls_transfer.presets import PRESETS
from stillroom.finetune.cli import FineTuneCli, ResumeFineTuning
from stillroom.images.files import refuse_missing_images
from stillroom.images.labels import USUAL, Columns


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classify images with a fine-tuned checkpoint, into a CSV file."""

    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """Checkpoint directory with a classifier, such as RUN/checkpoint."""
    images: Path
    """Folder of images, searched with its subfolders, one image, or another source: a list, a table, shards, ..."""
    out: Path
    """CSV file to write."""
    columns: Columns = USUAL
    top: int = 1
    """Classes per image, the likeliest first, each with its probability."""
    batch_size: int = 64
    """Images per forward pass."""
    device: DeviceName = "auto"
    """auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    workers: Workers = "auto"
    """Processes that decode images; 0: the main process does. auto: one for each core, on a machine without a GPU one
    less."""
    on_broken: OnBroken = "refuse"
    """What to do with an image that cannot be read: stop, or skip and name it."""

    def run(self) -> str:
        refuse_existing(self.out)
        refuse_missing_images(self.images)
        read_manifest(self.checkpoint / MANIFEST)
        from stillroom.cls_transfer.predict import predict

        out = predict(
            self.checkpoint,
            self.images,
            self.out,
            top=self.top,
            batch_size=self.batch_size,
            device=self.device,
            workers=self.workers,
            on_broken=self.on_broken,
            columns=self.columns,
        )
        return f"{out}: {len(out.read_text(encoding='utf-8').splitlines()) - 1} images"


@dataclass(frozen=True, kw_only=True)
class Resume(ResumeFineTuning):
    """Resume a run that was stopped, from its last state, with what it began with."""

    train: Path | None = None
    """Where the training images lie now, if moved. None: where the run found them."""
    test: Path | None = None
    """Where the test images lie now, if moved. None: where the run found them."""
    val: Path | None = None
    """Where the validation images lie now, if moved. None: where the run found them."""
    data: Path | None = None
    """Where the folder of published data sets lies now, if moved. None: where the run found it."""


def load_task() -> Any:
    """Import the module that acts, and torch with it."""
    from stillroom.cls_transfer import task

    return task


CLI = FineTuneCli(
    prog="stillroom-cls-transfer",
    description="Fine-tune a backbone for image classification, or train a supervised one.",
    presets=PRESETS,
    preflight=preflight,
    load=load_task,
    commands={"predict": Predict},
    resume=Resume,
)
command_type, main = CLI.command_type, CLI.main
