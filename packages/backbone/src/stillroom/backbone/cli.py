"""`stillroom-checkpoint inspect | verify`, and the commands of other packages: `import` and `export`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import tyro
from tyro.conf import Positional

from stillroom.backbone.command import DEBUG_HELP, Command, report_errors
from stillroom.backbone.manifest import describe_manifest, verify_checkpoint

GROUP = "stillroom.checkpoint"
"""Entry points by which an installed package adds a command."""


@dataclass(frozen=True)
class Inspect:
    """Print a checkpoint's net, input, provenance, licence and files."""

    checkpoint: Positional[Path]
    """Checkpoint directory."""

    def run(self) -> None:
        print(describe_manifest(verify_checkpoint(self.checkpoint)))


@dataclass(frozen=True)
class Verify:
    """Check every file of a checkpoint against its manifest."""

    checkpoint: Positional[Path]
    """Checkpoint directory."""

    def run(self) -> None:
        manifest = verify_checkpoint(self.checkpoint)
        print(f"{self.checkpoint}: {len(manifest.files)} files and {manifest.weights.tensors} tensors are unchanged")


COMMANDS: dict[str, Callable[..., Command]] = {"inspect": Inspect, "verify": Verify}


def installed_commands() -> dict[str, Callable[..., Command]]:
    """All commands by name: those that other packages add as entry points of `GROUP`, and this package's own."""
    return {entry.name: entry.load() for entry in entry_points(group=GROUP)} | COMMANDS  # which none can replace


@report_errors
def main() -> None:
    """Entry point of `stillroom-checkpoint`."""
    commands = installed_commands()
    for name in {"import", "export"} - commands.keys():
        if sys.argv[1:2] == [name]:
            raise ValueError(
                f"{name} is a command of stillroom-convert, which is not installed: install it beside this package"
            )
    description = f"Inspect, verify, import and export checkpoints. {DEBUG_HELP}"
    tyro.extras.subcommand_cli_from_dict(commands, prog="stillroom-checkpoint", description=description).run()
