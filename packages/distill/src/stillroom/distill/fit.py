"""Fit an alignment: teacher features of one view of each image, streamed into statistics; or load one."""

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.backbone.atomic import write_file
from stillroom.backbone.cache_folder import cache_directory
from stillroom.backbone.flags import OnBroken, Workers
from stillroom.distill.alignment import AlignedTarget, ScaledSvd
from stillroom.distill.alignment_file import (
    AlignmentInputs,
    build_alignment,
    encode_alignments,
    load_alignments,
)
from stillroom.distill.factors import LdaAlignment, NmfAlignment
from stillroom.distill.fit_state import FitState
from stillroom.distill.moments import ClassMoments, Moments
from stillroom.distill.selection import SelectedChannels
from stillroom.distill.slots import Alignment, Raw
from stillroom.distill.teacher import FrozenTeacher
from stillroom.distill.views import TeacherView, View, Views
from stillroom.images import EvaluationView, ImageDataset, Source
from stillroom.images.loaders import EvaluationBatches, build_loader
from stillroom.images.loaders import View as ViewOfImage
from stillroom.images.picture import describe_decoding
from stillroom.images.prefetch import prefetch
from stillroom.runs import Run
from stillroom.runs.hardware import exact_float32, float64_device
from stillroom.runs.progress import Progress
from stillroom.runs.store import cache_key, optional_cache

_BATCH_SIZE = 64
_SAMPLE = 2048  # images whose features set the scale and the std ratio


@dataclass(frozen=True, kw_only=True)
class RandomView:
    """A random view of each image, that of a run's first epoch.

    Args:
        transform: renders it.
        description: its settings, for the alignment's record.
        seed: of the views.
    """

    transform: ViewOfImage
    description: str
    seed: int

    @classmethod
    def for_teacher(cls, teacher: FrozenTeacher, view: View, teacher_view: TeacherView, seed: int) -> "RandomView":
        """The view that a teacher sees in a run with these settings."""
        transform = Views(view, teacher_view, [], [teacher.backbone.spec.input])
        return cls(transform=transform, description=f"{view} {teacher_view} seed {seed}", seed=seed)


@dataclass(frozen=True, kw_only=True)
class FitPass:
    """The images that an alignment is fitted on, and how they are read.

    Args:
        files: the images; labelled for LDA.
        run: this process; the images are divided over all processes.
        view: a random view; None: the teacher's evaluation view.
        unit: whether the target is scaled to a mean square of 1.
        workers: processes that decode images.
        on_broken: see `OnBroken`.
        as_stored: see `DistillConfig`.
    """

    files: Source
    run: Run
    view: RandomView | None = None
    unit: bool = True
    workers: Workers = 1
    on_broken: OnBroken = "refuse"
    as_stored: bool = False

    def features(
        self, teacher: FrozenTeacher, label: str, every: int = 1, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the indices and float32 features of batches of 64 images; none where no image of a batch is readable.

        Args:
            teacher: on the run's device.
            label: of the progress bar.
            every: only every so many-th image.
            start: batches of this process to leave out.
        """
        files = self.files if every == 1 else self.files.subset(range(0, len(self.files), every))
        if self.view is None:
            view: ViewOfImage = EvaluationView(teacher.backbone.spec.input)
            seed = 0
        else:
            view, seed = self.view.transform, self.view.seed
        dataset = ImageDataset(files, view, seed=seed, on_broken=self.on_broken, as_stored=self.as_stored)
        batches = EvaluationBatches(len(files), _BATCH_SIZE, self.run)
        batches.batches = batches.batches[start:]
        done = min(start * _BATCH_SIZE * self.run.world_size, len(files))
        progress = Progress(len(files), self.run, label, done=done)
        with exact_float32():
            for batch in progress.over(prefetch(build_loader(dataset, batches, self.workers), self.run.device)):
                progress.skip(batch.broken)
                pixels = batch.images.to(self.run.device)
                features = teacher(pixels).features if len(batch) else pixels.new_zeros(0, teacher.dim).float()
                yield batch.indices * every, features
            teacher.finish_pass()


def alignment_inputs(teacher: FrozenTeacher, fit: FitPass) -> AlignmentInputs:
    """The record of what an alignment of this teacher is fitted on."""
    return AlignmentInputs(
        teacher_sha256=teacher.sha256,
        feature=teacher.backbone.spec.feature,
        output=teacher.output,
        teacher_size=teacher.backbone.spec.input.size,
        view="evaluation" if fit.view is None else fit.view.description,
        data_fingerprint=fit.files.fingerprint,
        count=len(fit.files),
    )


@torch.no_grad()
def fit_alignment(
    teacher: FrozenTeacher, config: Alignment, dim: int, fit: FitPass, file: Path | None = None
) -> AlignedTarget:
    """Fit an alignment and the scale of its target to the teacher's features, in float32.

    Args:
        teacher: on the run's device.
        config: settings of the alignment.
        dim: the student's width, which the target has where `config` sets none.
        fit: the images.
        file: that will hold the alignment; the state of the pass is saved beside it, and one that was stopped goes on
            from there. None: nothing is saved. NMF always starts again.

    Raises:
        ValueError: see the alignments' `fit` and `Moments.update`.
    """
    target = build_alignment(config, teacher.dim, dim)  # fitted on the CPU: other devices may have no float64
    alignment: Any = target.alignment
    moments = build_moments(target, fit)
    labels = torch.tensor(fit.files.labels or ())
    every = math.ceil(len(fit.files) / _SAMPLE)
    needs_all = moments is not None or isinstance(alignment, NmfAlignment)  # the others only need the sample
    if not needs_all and not fit.unit:
        return target.to(fit.run.device)
    samples: list[Tensor] = []
    state = None
    start = 0
    if file is not None and moments is not None:
        state = FitState(file, alignment_key(teacher, config, dim, fit), fit.run)
        if saved := state.load():
            start, samples = saved["done"], [saved["sample"]]
            moments.load_state_dict(saved["moments"])
    passes = fit.features(teacher, "alignment", every=1 if needs_all else every, start=start)
    for done, (indices, features) in enumerate(passes, start + 1):
        match moments:
            case Moments():
                moments.update(features)
            case ClassMoments():
                moments.update(features, labels[indices])
        if isinstance(alignment, NmfAlignment) and len(features):
            alignment.partial_fit(features)
        samples.append(features[(indices % every == 0).to(features.device)].cpu())
        if state is not None and moments is not None and state.is_due():
            samples = [torch.cat(samples)]
            state.save({"done": done, "sample": samples[0], "moments": moments.state_dict()})
    if isinstance(alignment, NmfAlignment):
        alignment.finish()
    if moments is not None:
        moments.reduce(fit.run)
        alignment.fit(moments)
    target.to(fit.run.device)
    sample = torch.cat([features for gathered in fit.run.gather(samples) for features in gathered]).to(fit.run.device)
    target.calibrate(sample, unit=fit.unit)
    if state is not None:
        state.remove()
    return target


def build_moments(target: AlignedTarget, fit: FitPass) -> Moments | ClassMoments | None:
    """The empty statistics that an alignment is fitted from; None where it needs none.

    Raises:
        ValueError: LDA without labels; NMF in several processes.
    """
    device = float64_device(fit.run.device)
    match target.alignment:
        case SelectedChannels(by="random"):
            return None
        case ScaledSvd() | SelectedChannels():
            return Moments(target.feature_dim, device)
        case LdaAlignment():
            if fit.files.labels is None:
                raise ValueError("LDA needs labels: --data must be a folder with one subfolder per class")
            return ClassMoments(target.feature_dim, len(fit.files.classes), device)
        case NmfAlignment() if fit.run.world_size > 1:
            raise ValueError("NMF is fitted in one process: run fit-alignment, then pass --alignment-file")
        case _:
            return None


def describe(config: Alignment, target: AlignedTarget) -> str:
    """Describe an alignment in one line: name and widths; for SVD also rank, explained variance and std ratios."""
    name = type(config).__name__
    if not isinstance(target.alignment, ScaledSvd):
        return f"{name}: {target.feature_dim}-d feature -> {target.dim}-d target"
    svd = target.alignment.svd
    explained = float((svd.std_.cpu().double() ** 2).sum() / svd.variance_.cpu().double().sum())
    before, after = target.std_ratio_ or (float("nan"), float("nan"))
    return (
        f"{name}: {target.feature_dim}-d feature of rank {int(svd.rank_)} -> {target.dim} components, "
        f"{100 * explained:.1f} % of the variance, std ratio {before:.1f} -> {after:.1f}"
    )


def alignment_key(teacher: FrozenTeacher, config: Alignment, dim: int, fit: FitPass) -> str:
    """The hash of everything that a fitted alignment depends on."""
    spec = teacher.backbone.spec
    net = [spec.name, spec.arguments, asdict(spec.input)]
    request = [type(config).__name__, asdict(config), dim, fit.unit]
    inputs = asdict(alignment_inputs(teacher, fit))
    read = {"files": fit.files.stamp, **describe_decoding(as_stored=fit.as_stored)}
    return cache_key({**inputs, "net": net, "alignment": request, **read})


def cached_alignment(
    teacher: FrozenTeacher, config: Alignment, dim: int, fit: FitPass
) -> tuple[AlignedTarget, AlignmentInputs]:
    """Load the alignment for these inputs from the cache, or fit it and store it there.

    The cache is `$STILLROOM_CACHE/alignments`, by default below ~/.cache/stillroom; the file's name is the hash of the
    inputs and of the alignment's settings, so a change of teacher, feature point, size, images or settings misses it.
    """
    inputs = alignment_inputs(teacher, fit)
    file = cache_directory("alignments") / f"{alignment_key(teacher, config, dim, fit)}.safetensors"
    is_cached = os.path.exists(file)  # noqa: PTH110  # False, too, where the cache may not be entered
    if all(fit.run.gather(is_cached)):  # each node may have its own cache: all of them load, or all fit
        [(_, target, _)] = load_alignments(file)
        if fit.run.is_main:
            print(f"alignment: {describe(config, target)}; reused from {file}")
        return target.to(fit.run.device), inputs
    target = fit_alignment(teacher, config, dim, fit, file)
    if fit.run.is_main:
        print(f"alignment: {describe(config, target)}")
        with optional_cache(fit.run, file.parent):
            write_file(file, encode_alignments([(config, target, inputs)]))
    return target, inputs


def load_matching_alignment(
    file: Path, teacher: FrozenTeacher, config: Alignment, dim: int, run: Run, *, unit: bool = True
) -> tuple[AlignedTarget, AlignmentInputs]:
    """Load an alignment that was fitted elsewhere, possibly on other images, and check that it fits a run.

    Args:
        file: of one teacher's alignment.
        teacher: of the run.
        config: the run's settings of the alignment.
        dim: the student's width, which the target must have where `config` sets none.
        run: this process.
        unit: whether the target is scaled to a mean square of 1.

    Raises:
        ValueError: fitted on another teacher or feature point, or with other settings. Imported files do not name
            their teacher; only their width is checked.
    """
    loaded = load_alignments(file)
    if len(loaded) != 1:
        raise ValueError(f"{file} holds the alignments of {len(loaded)} teachers, expected that of one")
    [(fitted_with, target, inputs)] = loaded
    if inputs.teacher_sha256 is not None:
        if inputs.teacher_sha256 != teacher.sha256:
            raise ValueError(f"{file} was fitted on another teacher ({inputs.teacher_sha256[:12]}...): fit it again")
        if inputs.feature != teacher.backbone.spec.feature:
            point = teacher.backbone.spec.feature
            raise ValueError(f"{file} was fitted on features {inputs.feature} the last activation, not {point} it")
        if inputs.output != teacher.output:
            raise ValueError(f"{file} was fitted on the teacher's {inputs.output}, not on its {teacher.output}")
    if target.feature_dim != teacher.dim:
        raise ValueError(f"{file} is for {target.feature_dim}-d features, the teacher's is {teacher.dim}-d")
    target_dim = teacher.dim if isinstance(config, Raw) else config.dim or dim
    if target.dim != target_dim or settings(fitted_with) != settings(config):
        raise ValueError(f"{file} holds {fitted_with} of {target.dim} dimensions, expected {config} of {target_dim}")
    if not unit:
        target.scale_.fill_(1)
    return target.to(run.device), inputs


def load_fitted(file: Path, teacher: FrozenTeacher, config: Alignment, dim: int, fit: FitPass) -> AlignedTarget:
    """Load an alignment that an earlier command fitted, which must be the one that this command would fit.

    Raises:
        ValueError: see `load_matching_alignment`; or it was fitted on other images, views or sizes.
    """
    target, inputs = load_matching_alignment(file, teacher, config, dim, fit.run, unit=fit.unit)
    now, then = asdict(alignment_inputs(teacher, fit)), asdict(inputs)
    if differ := [name for name in now if now[name] != then[name]]:
        raise ValueError(f"{file} was fitted on something else ({', '.join(differ)}): choose another --out")
    return target


def settings(config: Alignment) -> tuple[str, dict[str, object]]:
    """The name and settings of an alignment, apart from its width."""
    return type(config).__name__, {name: value for name, value in asdict(config).items() if name != "dim"}
