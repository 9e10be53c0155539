"""`stillroom-cls-transfer finetune | scratch | legacy-kdep | smoke | resume | predict`."""

import functools
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg, subcommand

from stillroom.backbone.command import plainly, say
from stillroom.backbone.loading import OnBroken
from stillroom.backbone.run import DeviceName
from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.predict import predict
from stillroom.cls_transfer.presets import PRESETS
from stillroom.cls_transfer.sweep import finetune, report, resume


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
        return report(resume(self.path, device=self.device, workers=self.workers, log_every=self.log_every))


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classify images with a fine-tuned checkpoint, into a CSV file."""

    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """Checkpoint directory with a classifier, such as RUN/checkpoint."""
    images: Path
    """Folder of images, whose subfolders mean nothing, a file list (.txt), or one image."""
    out: Path
    """CSV file to write."""
    top: int = 1
    """Classes for each image, the likeliest first, each with its probability."""
    batch_size: int = 64
    """Images per forward pass."""
    device: DeviceName = "auto"
    """auto: a GPU if there is one."""
    workers: int = 1
    """Processes that decode images."""
    on_broken: OnBroken = "refuse"
    """An image that cannot be read stops the run, or is skipped and named."""

    def run(self) -> str:
        out = predict(
            self.checkpoint, self.images, self.out, top=self.top, batch_size=self.batch_size, device=self.device,
            workers=self.workers, on_broken=self.on_broken,
        )  # fmt: skip
        return f"{out}: {len(out.read_text(encoding='utf-8').splitlines()) - 1} images"


@plainly
def main() -> None:
    """Entry point of `stillroom-cls-transfer`."""
    command = tyro.cli(
        command_type(),
        prog="stillroom-cls-transfer",
        description="Fine-tune a backbone for image classification, or train a supervised one.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    say(report(finetune(command)) if isinstance(command, ClassifyConfig) else command.run())


def command_type() -> Any:
    """The presets, `resume` and `predict` as one union for tyro; a preset's docstring is its help."""
    given: Any = {name: tyro.MISSING for name in ("checkpoint", "out")}
    small = {"checkpoint": ("random:cifar/resnet20",), "out": Path("runs/smoke-cls")}
    presets = {name: preset(**(small if name == "smoke" else given)) for name, preset in PRESETS.items()}
    notes = {name: preset.__doc__ or "" for name, preset in PRESETS.items()}
    members: list[Any] = [tyro.extras.subcommand_type_from_defaults(presets, descriptions=notes)]
    members += [Annotated[Resume, subcommand("resume")], Annotated[Predict, subcommand("predict")]]
    return functools.reduce(operator.or_, members)
