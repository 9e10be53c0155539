"""The pass that fits an alignment: teacher features of the evaluation view, streamed into moments."""

import hashlib
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from stillroom.backbone import Backbone, EvaluationView, ImageDataset, ImageFiles, Normalize, Run, weights_sha256
from stillroom.backbone.files import write_file
from stillroom.backbone.images import EvaluationBatches, OnBroken, build_loader
from stillroom.backbone.progress import Progress
from stillroom.distill.alignment import AlignedTarget, PowerTemperatureScaling, SvdAlignment
from stillroom.distill.alignment_file import AlignmentInputs, encode_alignment, fits, load_alignment
from stillroom.distill.config import Alignment, SvdPts
from stillroom.distill.moments import Moments

_BATCH_SIZE = 64
_SAMPLE = 2048  # images whose features set the scale and show the std ratio


def alignment_inputs(teacher: Backbone, files: ImageFiles) -> AlignmentInputs:
    """The record of what an alignment of this teacher on these images is fitted on."""
    return AlignmentInputs(
        teacher_sha256=weights_sha256(teacher.net),
        feature="before" if teacher.spec.pre_activation else "after",
        teacher_size=teacher.spec.input.size,
        data_fingerprint=files.fingerprint,
        count=len(files),
    )


@torch.no_grad()
def fit_alignment(
    teacher: Backbone,
    files: ImageFiles,
    config: Alignment,
    dim: int,
    run: Run,
    *,
    workers: int = 1,
    on_broken: OnBroken = "refuse",
) -> AlignedTarget:
    """Fit SVD (and PTS's scale) on the teacher's features of the images, in float32, each image in its evaluation view.

    Args:
        teacher: on the run's device, in eval mode.
        files: the images.
        config: which alignment.
        dim: its components where the config names none: the student's width.
        run: this process; the images are dealt out over all of them.
        workers: processes that decode images.
        on_broken: see `OnBroken`.

    Raises:
        ValueError: see `SvdAlignment.fit` and `Moments.update`.
    """
    svd = SvdAlignment(config.dim or dim, zero_fill=config.zero_fill)
    dataset = ImageDataset(files, EvaluationView(teacher.spec.input), on_broken=on_broken)
    loader = build_loader(dataset, EvaluationBatches(len(files), _BATCH_SIZE, run), workers)
    normalize = Normalize(teacher.spec.input).to(run.device)
    moments = Moments(teacher.spec.dim, run.device)
    every = math.ceil(len(files) / _SAMPLE)
    sampled: list[Tensor] = []
    progress = Progress(len(files), run, "alignment")
    for batch in progress.over(loader):
        progress.skip(batch.broken)
        if len(batch):
            features = teacher(normalize(batch.images.to(run.device))).pooled
            moments.update(features)
            sampled.append(features[(batch.indices % every == 0).to(run.device)].cpu())
    moments.reduce(run)
    sample = torch.cat([part for parts in run.gather(sampled) for part in parts]).to(run.device)
    svd = svd.to(run.device).fit(moments)
    scaling = PowerTemperatureScaling(config.temperature, config.exponent) if isinstance(config, SvdPts) else None
    return AlignedTarget(svd, scaling).to(run.device).calibrate(sample)


def describe(target: AlignedTarget) -> str:
    """One line on an alignment: rank, components, explained variance, std ratio before and after scaling."""
    variance = target.svd.variance_.double()
    explained = float(variance[: target.dim].sum() / variance.sum())
    before, after = target.std_ratio_
    ratio = f"std ratio {before:.1f}" + (f" -> {after:.1f} after PTS" if target.scaling else "")
    return (
        f"{len(variance)}-d feature of rank {target.svd.rank_} -> {target.dim} components, "
        f"{100 * explained:.1f} % of the variance, {ratio}"
    )


def find_alignment(
    teacher: Backbone,
    files: ImageFiles,
    config: Alignment,
    dim: int,
    run: Run,
    *,
    workers: int,
    on_broken: OnBroken,
) -> tuple[AlignedTarget, AlignmentInputs]:
    """The alignment for these inputs: from the cache where one was fitted before, else fitted now and kept there.

    The cache is `$STILLROOM_CACHE/alignments`, by default below ~/.cache/stillroom; the file's name is the hash of the
    inputs and of the alignment's settings, so a change of teacher, feature point, size, images or settings misses it.
    """
    inputs = alignment_inputs(teacher, files)
    key = json.dumps([asdict(inputs), type(config).__name__, asdict(config), dim], sort_keys=True)
    file = cache_directory() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    known = file.exists()
    run.wait()  # every process has looked before one may write
    if known:
        target, _ = load_alignment(file)
        if run.is_main:
            print(f"alignment: {describe(target)}; reused from {file}")
        return target.to(run.device), inputs
    target = fit_alignment(teacher, files, config, dim, run, workers=workers, on_broken=on_broken)
    if run.is_main:
        print(f"alignment: {describe(target)}")
        write_file(file, encode_alignment(target, inputs))
    return target, inputs


def given_alignment(
    file: Path, teacher: Backbone, config: Alignment, dim: int, run: Run
) -> tuple[AlignedTarget, AlignmentInputs]:
    """An alignment fitted elsewhere, perhaps on other images.

    Raises:
        ValueError: fitted for another teacher, feature point or settings. Imported files do not say their teacher;
            only their width is checked.
    """
    target, inputs = load_alignment(file)
    if inputs.teacher_sha256 is not None:
        own = "before" if teacher.spec.pre_activation else "after"
        if inputs.teacher_sha256 != weights_sha256(teacher.net):
            raise ValueError(f"{file} was fitted on another teacher ({inputs.teacher_sha256[:12]}...): fit it again")
        if inputs.feature != own:
            raise ValueError(f"{file} was fitted on features {inputs.feature} the last activation, not {own} it")
    if len(target.svd.mean_) != teacher.spec.dim:
        raise ValueError(f"{file} is for {len(target.svd.mean_)}-d features, the teacher's is {teacher.spec.dim}-d")
    if not fits(target, config, dim):
        raise ValueError(
            f"{file} holds {target.dim} components (PTS: {target.scaling is not None}, zero-fill: "
            f"{target.svd.zero_fill}), which is not what {config} asks for a {dim}-d student"
        )
    return target.to(run.device), inputs


def cache_directory() -> Path:
    """Where fitted alignments are kept."""
    root = os.environ.get("STILLROOM_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "stillroom") / "alignments"
