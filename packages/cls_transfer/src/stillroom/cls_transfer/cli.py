"""`stillroom-cls-transfer finetune | scratch | resume | smoke`."""

import functools
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg, subcommand

from stillroom.backbone.command import plainly
from stillroom.backbone.run import DeviceName
from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.presets import PRESETS
from stillroom.cls_transfer.train import finetune, resume, summary


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

    def run(self) -> Path:
        return resume(self.path, device=self.device, workers=self.workers, log_every=self.log_every)


@plainly
def main() -> None:
    """Entry point of `stillroom-cls-transfer`."""
    command = tyro.cli(
        command_type(),
        prog="stillroom-cls-transfer",
        description="Fine-tune a backbone for image classification, or train a supervised one.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    path = finetune(command) if isinstance(command, ClassifyConfig) else command.run()
    print(summary(path))


def command_type() -> Any:
    """The presets and `resume` as one union for tyro; a preset's docstring is its help."""
    given: Any = {name: tyro.MISSING for name in ("checkpoint", "train", "test", "out")}
    toy = {
        "checkpoint": "random:cifar/resnet20",
        "train": Path("data/toy/heldout-shapes/train"),
        "test": Path("data/toy/heldout-shapes/val"),
        "out": Path("runs/smoke-cls"),
    }
    presets = {name: preset(**(toy if name == "smoke" else given)) for name, preset in PRESETS.items()}
    notes = {name: preset.__doc__ or "" for name, preset in PRESETS.items()}
    members: list[Any] = [tyro.extras.subcommand_type_from_defaults(presets, descriptions=notes)]
    members.append(Annotated[Resume, subcommand("resume")])
    return functools.reduce(operator.or_, members)
