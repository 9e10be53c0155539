"""`stillroom-det-transfer faster-rcnn-fpn | faster-rcnn-c4 | retinanet-fpn | ... | smoke | resume | predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from stillroom.backbone.atomic import refuse_existing
from stillroom.backbone.command import ResumeFlags, print_on_main, report_errors, subcommand_union
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.image_files import refuse_missing_images
from stillroom.backbone.results import refuse_unfinished
from stillroom.backbone.sweep import refuse_unresumable
from stillroom.backbone.table import report
from stillroom.det_transfer.config import DetectConfig, preflight
from stillroom.det_transfer.presets import PRESETS


class Resume(ResumeFlags):
    """Resume an interrupted run from its last state."""

    def run(self) -> str:
        """Check the path, then resume and summarise the results."""
        refuse_unresumable(self.path)
        from stillroom.det_transfer.record import summary
        from stillroom.det_transfer.sweep import resume

        return report(resume(self.path, **self.changes), summary)


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Detect objects in new images with a finished run: one JSON in COCO's format, and a picture of each image."""

    run_directory: Annotated[Path, arg(name="run", metavar="RUN")]
    """Directory of a finished run."""
    images: Path
    """Folder of images, a file list (.txt), or one image."""
    out: Path
    """Folder to make, with detections.json and overlays/."""
    score: float = 0.5
    """Lowest score of a detection that is kept, 0 to 1."""
    device: DeviceName = "auto"
    """auto: a GPU if there is one."""

    def run(self) -> str:
        """Check the paths, then predict and count the pictures."""
        refuse_existing(self.out)
        refuse_unfinished(self.run_directory)
        refuse_missing_images(self.images)
        from stillroom.det_transfer.predict import predict

        out = predict(self.run_directory, self.images, self.out, score=self.score, device=self.device)
        return f"{out}: {len(list((out / 'overlays').rglob('*.png')))} images"


@report_errors
def main() -> None:
    """Entry point of `stillroom-det-transfer`."""
    command = tyro.cli(
        command_type(),
        prog="stillroom-det-transfer",
        description="Fine-tune a backbone for object detection with Detectron2, or with torchvision's detectors.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    print_on_main(train(command) if isinstance(command, DetectConfig) else command.run())


def train(config: DetectConfig) -> str:
    """Run a preset; its flags and paths are checked before torch is imported."""
    preflight(config)
    from stillroom.det_transfer.record import summary
    from stillroom.det_transfer.sweep import finetune

    return report(finetune(config), summary)


def command_type() -> Any:
    """Join the presets, `resume` and `predict` in one union for tyro."""
    return subcommand_union(PRESETS, {"resume": Resume, "predict": Predict})
