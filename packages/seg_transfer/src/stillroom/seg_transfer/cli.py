"""`stillroom-seg-transfer pspnet | fcn | deeplabv3plus | upernet | linear | legacy-* | smoke | resume | predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from stillroom.backbone.command import ResumeFlags, one_of, plainly, say
from stillroom.backbone.run import DeviceName
from stillroom.backbone.table import report
from stillroom.seg_transfer.config import SegmentConfig
from stillroom.seg_transfer.predict import predict
from stillroom.seg_transfer.presets import PRESETS
from stillroom.seg_transfer.record import summary
from stillroom.seg_transfer.sweep import finetune, resume


class Resume(ResumeFlags):
    """Go on with a run that was stopped, from its last state."""

    def run(self) -> str:
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
        out = predict(self.run_directory, self.images, self.out, device=self.device)
        return f"{out}: {len(list((out / 'masks').rglob('*.png')))} masks"


@plainly
def main() -> None:
    """Entry point of `stillroom-seg-transfer`."""
    command = tyro.cli(
        command_type(),
        prog="stillroom-seg-transfer",
        description="Fine-tune a backbone for semantic segmentation with MMSegmentation.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    say(report(finetune(command), summary) if isinstance(command, SegmentConfig) else command.run())


def command_type() -> Any:
    """The presets, `resume` and `predict` as one union for tyro."""
    return one_of(PRESETS, {"resume": Resume, "predict": Predict})
