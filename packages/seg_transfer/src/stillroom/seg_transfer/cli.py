"""`stillroom-seg-transfer pspnet | fcn | deeplabv3plus | upernet | linear | legacy-* | smoke | resume | predict`."""

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
from stillroom.seg_transfer.config import SegmentConfig, preflight
from stillroom.seg_transfer.presets import PRESETS


class Resume(ResumeFlags):
    """Go on with a run that was stopped, from its last state."""

    def run(self) -> str:
        refuse_unresumable(self.path)
        from stillroom.seg_transfer.record import summary
        from stillroom.seg_transfer.sweep import resume

        return report(resume(self.path, **self.changes), summary)


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Segment images with a trained run: masks of class indices, and overlays to look at."""

    run_directory: Annotated[Path, arg(name="run", metavar="RUN")]
    """Directory of a run that is done."""
    images: Path
    """Folder of images, a file list (.txt), or one image."""
    out: Path
    """Folder to make: masks/, overlays/, classes.txt."""
    device: DeviceName = "auto"
    """auto: a GPU if there is one."""

    def run(self) -> str:
        refuse_existing(self.out)
        refuse_unfinished(self.run_directory)
        refuse_missing_images(self.images)
        from stillroom.seg_transfer.predict import predict

        out = predict(self.run_directory, self.images, self.out, device=self.device)
        return f"{out}: {len(list((out / 'masks').rglob('*.png')))} masks"


@report_errors
def main() -> None:
    """Entry point of `stillroom-seg-transfer`."""
    command = tyro.cli(
        command_type(),
        prog="stillroom-seg-transfer",
        description="Fine-tune a backbone for semantic segmentation with MMSegmentation.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    print_on_main(train(command) if isinstance(command, SegmentConfig) else command.run())


def train(config: SegmentConfig) -> str:
    """Do what a preset says: its paths and flags are looked at before torch is imported."""
    preflight(config)
    from stillroom.seg_transfer.record import summary
    from stillroom.seg_transfer.sweep import finetune

    return report(finetune(config), summary)


def command_type() -> Any:
    """The presets, `resume` and `predict` as one union for tyro."""
    return subcommand_union(PRESETS, {"resume": Resume, "predict": Predict})
