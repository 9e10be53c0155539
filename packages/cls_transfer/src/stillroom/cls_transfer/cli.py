"""`stillroom-cls-transfer finetune | scratch | legacy-kdep | smoke | resume | predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from stillroom.backbone.atomic import refuse_existing
from stillroom.backbone.command import ResumeFlags, print_on_main, report_errors, subcommand_union
from stillroom.backbone.flags import DeviceName, OnBroken
from stillroom.backbone.image_files import refuse_missing_images
from stillroom.backbone.manifest import MANIFEST, read_manifest
from stillroom.backbone.sweep import refuse_unresumable
from stillroom.cls_transfer.config import ClassifyConfig, preflight
from stillroom.cls_transfer.presets import PRESETS


class Resume(ResumeFlags):
    """Go on with a run that was stopped, from its last state."""

    def run(self) -> str:
        refuse_unresumable(self.path)
        from stillroom.cls_transfer.sweep import report, resume

        return report(resume(self.path, **self.changes))


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
        refuse_existing(self.out)
        refuse_missing_images(self.images)
        read_manifest(self.checkpoint / MANIFEST)
        from stillroom.cls_transfer.predict import predict

        out = predict(
            self.checkpoint, self.images, self.out, top=self.top, batch_size=self.batch_size, device=self.device,
            workers=self.workers, on_broken=self.on_broken,
        )  # fmt: skip
        return f"{out}: {len(out.read_text(encoding='utf-8').splitlines()) - 1} images"


@report_errors
def main() -> None:
    """Entry point of `stillroom-cls-transfer`."""
    command = tyro.cli(
        command_type(),
        prog="stillroom-cls-transfer",
        description="Fine-tune a backbone for image classification, or train a supervised one.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    print_on_main(train(command) if isinstance(command, ClassifyConfig) else command.run())


def train(config: ClassifyConfig) -> str:
    """Do what a preset says: its paths and flags are looked at before torch is imported."""
    preflight(config)
    from stillroom.cls_transfer.sweep import finetune, report

    return report(finetune(config))


def command_type() -> Any:
    """The presets, `resume` and `predict` as one union for tyro."""
    return subcommand_union(PRESETS, {"resume": Resume, "predict": Predict})
