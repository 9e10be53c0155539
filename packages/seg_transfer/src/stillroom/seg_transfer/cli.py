"""`stillroom-seg-transfer pspnet | fcn | deeplabv3plus | upernet | linear | legacy-* | smoke | resume | predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from stillroom.backbone.atomic import refuse_existing
from stillroom.backbone.flags import DeviceName
from stillroom.finetune.cli import FineTuneCli, ResumeFineTuning
from stillroom.images.files import refuse_missing_images
from stillroom.runs.results import refuse_unfinished
from stillroom.seg_transfer.config import preflight
from stillroom.seg_transfer.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Segment images with a finished run: masks of class indices, and overlays to look at."""

    run_directory: Annotated[Path, arg(name="run", metavar="RUN")]
    """Directory of a finished run."""
    images: Path
    """Folder of images, one image, or another source: a list, a table, tar shards, a .zip file, ..."""
    out: Path
    """Folder to create: masks/, overlays/, classes.txt."""
    device: DeviceName = "auto"
    """auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    trust_run: bool = False
    """Run the code in RUN: config.py is a program, and MMEngine's states are pickles. Only for runs of your own; those
    with --framework-config need it."""

    def run(self) -> str:
        refuse_existing(self.out)
        refuse_unfinished(self.run_directory)
        refuse_missing_images(self.images)
        from stillroom.seg_transfer.predict import predict

        out = predict(self.run_directory, self.images, self.out, device=self.device, trust_run=self.trust_run)
        return f"{out}: {len(list((out / 'masks').rglob('*.png')))} masks"


@dataclass(frozen=True, kw_only=True)
class Resume(ResumeFineTuning):
    """Resume a run that was stopped, from its last state, with what it began with."""

    data: Path | None = None
    """Where the data set lies now, if moved. None: where the run found it."""
    framework_config: Path | None = None
    """Where the config of MMSegmentation lies now, if moved. None: where the run found it."""
    trust_run: bool = False
    """Run the code that RUN names: a config of MMSegmentation, and MMEngine's pickled states. Only for runs of your
    own; those with --framework-config need it."""


def load_task() -> Any:
    """Import the module that acts, and torch and MMSegmentation with it."""
    from stillroom.seg_transfer import task

    return task


CLI = FineTuneCli(
    prog="stillroom-seg-transfer",
    description="Fine-tune a backbone for semantic segmentation with MMSegmentation.",
    presets=PRESETS,
    preflight=preflight,
    load=load_task,
    commands={"predict": Predict},
    resume=Resume,
)
command_type, main = CLI.command_type, CLI.main
