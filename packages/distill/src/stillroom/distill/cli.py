"""`stillroom-distill auto | kdep | fit-alignment | import-alignment | resume | smoke`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from stillroom.backbone.atomic import refuse_existing, refuse_unwritable, write_file
from stillroom.backbone.checks import at_least
from stillroom.backbone.command import ResumeFlags, parse_command, print_on_main, report_errors, subcommand_union
from stillroom.backbone.flags import DeviceName, IfExists, OnBroken, Workers
from stillroom.backbone.names import refuse_missing_checkpoint
from stillroom.distill.auto_config import AutoConfig, preflight_auto, refuse_other_flags
from stillroom.distill.config import DistillConfig, preflight
from stillroom.distill.nets import Net
from stillroom.distill.presets import PRESETS
from stillroom.distill.slots import Alignment, KdepView, Lda, SameView, Svd, SvdPts, View
from stillroom.images import read_labelled, read_unlabelled
from stillroom.images.files import refuse_missing_images
from stillroom.images.labels import USUAL, Columns
from stillroom.runs.run_files import CONFIG
from stillroom.runs.sweep import refuse_unresumable

KnnMonitor = Callable[..., dict[str, float]]
"""See `stillroom.distill.monitor.KnnMonitor`."""


@dataclass(frozen=True, kw_only=True)
class FitAlignment:
    """Fit an alignment alone, for use on other images by `kdep --alignment-file FILE`."""

    teacher: Net
    data: Path
    """Images, as for a run: a folder, a list, a table, tar shards, ...; by class for alignment:lda, else labels are not
    needed."""
    out: Path
    """Alignment file to write, .safetensors."""
    columns: Columns = USUAL
    dim: Annotated[int, arg(metavar="D")]
    """Width of the target: that of the students that will use the alignment."""
    alignment: Alignment = field(default_factory=SvdPts)
    alignment_view: Literal["evaluation", "training"] = "evaluation"
    """Fit on the evaluation view of the images, or on random views, as KDEP did."""
    view: View = field(default_factory=KdepView)
    """Random view for --alignment-view training."""
    alignment_images: int = 500_000
    """Images to fit on at most: a draw by --seed; of fewer images, all."""
    seed: int = 0
    """Seed of the random views, and of the draw of images."""
    device: DeviceName = "auto"
    """auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    workers: Workers = "auto"
    """Processes that decode images; 0: the main process does. auto: one for each core, on a machine without a GPU one
    less."""
    on_broken: OnBroken = "refuse"
    """refuse: an unreadable image stops the command; skip: it is left out."""
    shard_teacher: bool = False
    """Divide the teacher's weights over the processes (FSDP2), for one that is larger than a device."""
    if_exists: IfExists = "refuse"
    """refuse: OUT must not exist. resume: a file of the same alignment of the same images is kept; start everything
    that nobody watches this way. A fit that was stopped goes on either way."""

    def run(self) -> None:
        """Fit the alignment and write its file."""
        at_least(self, 1, "dim", "alignment_images")
        at_least(self, 0, "seed", "workers")
        self.view.check("view.")
        if self.if_exists == "refuse" or self.out.is_dir():
            refuse_existing(self.out)
        refuse_unwritable(self.out.absolute().parent)
        refuse_missing_images(self.data)
        refuse_missing_checkpoint(self.teacher.name)
        from stillroom.distill.alignment_file import encode_alignments
        from stillroom.distill.data import draw_images
        from stillroom.distill.fit import FitPass, RandomView, alignment_inputs, describe, fit_alignment, load_fitted
        from stillroom.distill.teacher import build_teacher
        from stillroom.runs import Run
        from stillroom.runs.guard import guarded

        run = Run.start(self.device)
        with guarded(self.out, run, patient=self.if_exists == "resume"):
            # 1. The images and the teacher.
            read = read_labelled if isinstance(self.alignment, Lda) else read_unlabelled
            files = draw_images(read(self.data, columns=self.columns), self.alignment_images, self.seed)
            teacher = build_teacher(self.teacher).place(run, shard=self.shard_teacher)
            view = None
            if self.alignment_view == "training":
                view = RandomView.for_teacher(teacher, self.view, SameView(), self.seed)
            fit = FitPass(files=files, run=run, view=view, workers=self.workers, on_broken=self.on_broken)
            # 2. Keep the file if it is there, else fit and write it.
            if is_kept := run.gather(self.out.exists())[0]:
                target = load_fitted(self.out, teacher, self.alignment, self.dim, fit)
            else:
                target = fit_alignment(teacher, self.alignment, self.dim, fit, self.out)
                if run.is_main:
                    inputs = alignment_inputs(teacher, fit)
                    write_file(self.out, encode_alignments([(self.alignment, target, inputs)]))
            run.wait()
        print_on_main(f"{self.out}: {describe(self.alignment, target)}{'; kept' if is_kept else ''}")
        run.close()


@dataclass(frozen=True, kw_only=True)
class ImportAlignment:
    """Convert the .npy files that KDEP published (basis V and mean feature) to an alignment file."""

    basis: Path
    """Basis, *_v.npy, (D, D): one component per column."""
    mean: Path
    """Mean feature, *_feat_mean.npy, (D,)."""
    out: Path
    """Alignment file to write, .safetensors."""
    dim: Annotated[int, arg(metavar="D")]
    """Number of components to keep: the student's width."""
    singular_values: Path | None = None
    """Singular values, *_eigen_values.npy, (D,); None: not recorded."""
    alignment: SvdPts | Svd = field(default_factory=SvdPts)

    def run(self) -> None:
        """Convert the files."""
        at_least(self, 1, "dim")
        refuse_existing(self.out)
        from stillroom.distill.alignment_file import import_kdep_alignment

        config, std_file = self.alignment, self.singular_values
        import_kdep_alignment(self.basis, self.mean, self.out, config=config, dim=self.dim, std_file=std_file)
        print(f"{self.out}: {self.dim} components")


@dataclass(frozen=True, kw_only=True)
class Resume(ResumeFlags):
    """Resume a run that was stopped, from its last state, with what it began with."""

    data: Path | None = None
    """Where the images lie now, if moved; the same ones. None: where the run found them."""
    teacher: Annotated[tuple[str, ...], arg(metavar="DIR|NAME [DIR|NAME ...]")] = ()
    """Where all teachers lie now, if moved; of the same weights. Empty: where the run found them."""
    student: Annotated[tuple[str, ...], arg(metavar="DIR|NAME [DIR|NAME ...]")] = ()
    """Where the initial checkpoints of all students lie now, if moved. Empty: where the run found them."""
    alignment_file: tuple[Path, ...] = ()
    """Where all alignment files lie now, if moved. Empty: where the run found them."""
    features: Annotated[Path | None, arg(name="cache.features")] = None
    """Where the file of --cache.features lies now, if moved. None: where the run found it."""
    knn: Annotated[Path | None, arg(name="monitor.knn")] = None
    """Where the folder of --monitor.knn lies now, if moved. None: where the run found it."""

    def run(self, knn: KnnMonitor | None = None) -> None:
        """Resume the run and print its outcome."""
        refuse_unresumable(self.path)
        from stillroom.distill.results import summary
        from stillroom.distill.train import resume
        from stillroom.runs.configs import to_places

        places = to_places(
            data=self.data,
            teacher__name=self.teacher or None,
            student__name=self.student or None,
            alignment_file=self.alignment_file or None,
            cache__features=self.features,
            monitor__knn=self.knn,
        )
        device, workers, log_every = self.device, self.workers, self.log_every
        resume(self.path, knn=knn, device=device, workers=workers, log_every=log_every, places=places)
        print_on_main(summary(self.path))


COMMANDS = {"auto": AutoConfig, "fit-alignment": FitAlignment, "import-alignment": ImportAlignment, "resume": Resume}


@report_errors
def main() -> None:
    """Entry point of `stillroom-distill`."""
    run_command(None)


def run_command(knn: KnnMonitor | None) -> None:
    """Read the command line and run the command.

    Args:
        knn: measures k-NN accuracy for `--monitor.knn`; the console command passes None, tools/distill.py a function.
    """
    command = parse_command(
        command_type(),
        prog="stillroom-distill",
        description="Turn a big pretrained vision model into a small backbone, without labels.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    match command:
        case DistillConfig():
            train(command, knn)
        case AutoConfig():
            preflight_auto(command, has_knn=knn is not None)
            if command.if_exists == "resume" and (command.out / CONFIG).exists():
                refuse_other_flags(command)
                return Resume(path=command.out, device=command.device, workers=command.workers).run(knn)
            from stillroom.distill.auto import plan

            train(plan(command), knn)
        case Resume():
            command.run(knn)
        case _:
            command.run()


def train(config: DistillConfig, knn: KnnMonitor | None) -> None:
    """Run a config; its paths and settings are validated before torch is imported."""
    preflight(config, has_knn=knn is not None)
    from stillroom.distill.results import summary
    from stillroom.distill.train import distill

    print_on_main(summary(distill(config, knn=knn)))


def command_type() -> Any:
    """The union of all presets and commands, for tyro."""
    return subcommand_union(PRESETS, COMMANDS)
