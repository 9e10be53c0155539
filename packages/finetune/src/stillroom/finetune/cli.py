"""The command line of a fine-tuning package: its presets, `resume`, and commands of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from stillroom.backbone.command import ResumeFlags, parse_command, print_on_main, report_errors, subcommand_union
from stillroom.finetune.config import FineTuneConfig
from stillroom.runs.sweep import refuse_unresumable


@dataclass(frozen=True, kw_only=True)
class ResumeFineTuning(ResumeFlags):
    """Resume a fine-tuning run; a task adds the flags that say where its own inputs lie now."""

    checkpoint: Annotated[str | None, arg(metavar="DIR")] = None
    """Where the initial checkpoint lies now, if it was moved; the run has a copy of its weights, and needs no other."""


@dataclass(frozen=True, kw_only=True)
class FineTuneCli:
    """A command line.

    Args:
        prog: name of the command.
        description: what it does, one sentence.
        presets: functions that make a config.
        preflight: refuses flags and paths without importing torch.
        load: imports the package's `task` module (its `finetune`, `resume` and `report`), and with it torch.
        commands: further subcommands, dataclasses of flags.
        resume: the flags of `resume`, with those that say where a task's inputs lie now.
    """

    prog: str
    description: str
    presets: Mapping[str, Callable[..., FineTuneConfig]]
    preflight: Callable[[Any], None]
    load: Callable[[], Any]
    commands: Mapping[str, type]
    resume: type[ResumeFineTuning] = ResumeFineTuning

    def command_type(self) -> Any:
        """The presets and commands as one union for tyro."""
        return subcommand_union(self.presets, {"resume": self.resume, **self.commands})

    def main(self) -> None:
        """Entry point; bad input ends in one sentence and exit code 2."""
        report_errors(self._run)()

    def _run(self) -> None:
        config = (tyro.conf.CascadeSubcommandArgs,)
        command = parse_command(self.command_type(), prog=self.prog, description=self.description, config=config)
        if isinstance(command, FineTuneConfig):
            self.preflight(command)
            task = self.load()
            print_on_main(task.report(task.finetune(command)))
        elif isinstance(command, ResumeFlags):
            refuse_unresumable(command.path)
            task = self.load()
            print_on_main(task.report(task.resume(command.path, **command.changes)))
        else:
            print_on_main(command.run())
