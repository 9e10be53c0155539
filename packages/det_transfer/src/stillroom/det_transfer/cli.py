"""`stillroom-det-transfer faster-rcnn-fpn | faster-rcnn-c4 | retinanet-fpn | ... | smoke | resume | predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from stillroom.backbone.atomic import refuse_existing
from stillroom.backbone.flags import DeviceName
from stillroom.det_transfer.config import preflight, refuse_untrusted
from stillroom.det_transfer.presets import PRESETS
from stillroom.finetune.cli import FineTuneCli, ResumeFineTuning
from stillroom.images.files import refuse_missing_images
from stillroom.runs.results import refuse_unfinished


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Detect objects in new images with a finished run: one JSON in COCO's format, and an overlay of each image."""

    run_directory: Annotated[Path, arg(name="run", metavar="RUN")]
    """Directory of a finished run."""
    images: Path
    """Folder of images, one image, or another source: a list, a table, tar shards, a .zip file, ..."""
    out: Path
    """Folder to create, with detections.json and overlays/."""
    score: float = 0.5
    """Lowest score of a detection that is kept, 0 to 1."""
    device: DeviceName = "auto"
    """auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    trust_run: bool = False
    """Execute the LazyConfig of a run with --framework-config: only if you trust whoever made the run."""

    def run(self) -> str:
        """Check the paths, then predict and count the overlays."""
        refuse_existing(self.out)
        refuse_unfinished(self.run_directory)
        refuse_untrusted(self.run_directory, self.trust_run)
        refuse_missing_images(self.images)
        from stillroom.det_transfer.predict import predict

        out = predict(
            self.run_directory,
            self.images,
            self.out,
            score=self.score,
            device=self.device,
            trust_run=self.trust_run,
        )
        return f"{out}: {len(list((out / 'overlays').rglob('*.png')))} images"


@dataclass(frozen=True, kw_only=True)
class Resume(ResumeFineTuning):
    """Resume a run that was stopped, from its last state, with what it began with."""

    data: Path | None = None
    """Where the data set lies now, if moved. None: where the run found it."""
    train: tuple[Path, Path] | None = None
    """Where the training images and their JSON lie now, if moved. None: where the run found them."""
    val: tuple[Path, Path] | None = None
    """Where the validation images and their JSON lie now, if moved. None: where the run found them."""
    framework_config: Path | None = None
    """Where the LazyConfig lies now, if moved. None: where the run found it."""
    trust_run: bool = False
    """Execute the LazyConfig of a run with --framework-config: only if you trust whoever made the run."""


def load_task() -> Any:
    """Import the module that acts, and torch with it."""
    from stillroom.det_transfer import task

    return task


CLI = FineTuneCli(
    prog="stillroom-det-transfer",
    description="Fine-tune a backbone for object detection with Detectron2, or with torchvision's detectors.",
    presets=PRESETS,
    preflight=preflight,
    load=load_task,
    commands={"predict": Predict},
    resume=Resume,
)
command_type, main = CLI.command_type, CLI.main
