"""`stillroom-seg-transfer pspnet | fcn | deeplabv3plus | upernet | linear | legacy-* | smoke | resume | predict`."""

import functools
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg, subcommand

from stillroom.backbone.command import plainly, say
from stillroom.backbone.run import DeviceName
from stillroom.backbone.table import report
from stillroom.seg_transfer.config import SegmentConfig
from stillroom.seg_transfer.predict import predict
from stillroom.seg_transfer.presets import PRESETS
from stillroom.seg_transfer.record import summary
from stillroom.seg_transfer.sweep import finetune, resume


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with a run that was stopped, from its last state."""

    path: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    device: DeviceName | None = None
    """None keeps what the run began with."""
    workers: int | None = None
    """Processes that decode images; None keeps what the run began with."""
    log_every: int | None = None
    """Steps between two log lines; None keeps what the run began with."""

    def run(self) -> str:
        return report(resume(self.path, device=self.device, workers=self.workers, log_every=self.log_every), summary)


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
    """The presets, `resume` and `predict` as one union for tyro; a preset's docstring is its help."""
    given: Any = {name: tyro.MISSING for name in ("checkpoint", "out")}
    small = {"checkpoint": ("random:torchvision/resnet18",), "out": Path("runs/smoke-seg")}
    presets = {name: preset(**(small if name == "smoke" else given)) for name, preset in PRESETS.items()}
    notes = {name: preset.__doc__ or "" for name, preset in PRESETS.items()}
    members: list[Any] = [tyro.extras.subcommand_type_from_defaults(presets, descriptions=notes)]
    members += [Annotated[Resume, subcommand("resume")], Annotated[Predict, subcommand("predict")]]
    return functools.reduce(operator.or_, members)
