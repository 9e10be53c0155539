"""Teacher outputs on disk: one row per image and view, exact, so that every later epoch and run can read them."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from stillroom.backbone import weights_sha256
from stillroom.backbone.cache_folder import cache_directory, warn_once
from stillroom.backbone.flags import Amp, OnBroken, Workers
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.config import Cache
from stillroom.distill.feature_file import file_sha256, import_features, read_import
from stillroom.distill.fit import settings
from stillroom.distill.slots import Alignment, FixedView, SameView, TeacherView, View
from stillroom.distill.teacher import CachedTeacher, FrozenTeacher
from stillroom.distill.views import Views, colours_on
from stillroom.images import ImageDataset, Source
from stillroom.images.loaders import EvaluationBatches, build_loader
from stillroom.images.loaders import View as ViewOfImage
from stillroom.images.picture import describe_decoding
from stillroom.images.prefetch import prefetch
from stillroom.runs import Run
from stillroom.runs.hardware import autocast
from stillroom.runs.progress import Progress
from stillroom.runs.store import CacheError, Store, store_bytes

_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class CachePass:
    """The images and views whose teacher outputs are stored, and how they are read.

    Args:
        files: the images.
        run: this process; each process fills its own batches.
        cache: number of views, what is stored, its number format.
        view: the students' view.
        teacher_view: the teachers' view.
        seed: of the views.
        amp: number format of the forward passes.
        workers: processes that decode images.
        on_broken: see `OnBroken`.
        own: the run's own folder for them, where the cache cannot be written.
        as_stored: see `DistillConfig`.
    """

    files: Source
    run: Run
    cache: Cache
    view: View
    teacher_view: TeacherView
    seed: int
    amp: Amp = "none"
    workers: Workers = 1
    on_broken: OnBroken = "refuse"
    own: Path
    as_stored: bool = False

    def dataset(self, views: ViewOfImage) -> ImageDataset:
        """The images in these views."""
        return ImageDataset(self.files, views, seed=self.seed, on_broken=self.on_broken, as_stored=self.as_stored)


@torch.no_grad()
def fill_cache(
    teacher: FrozenTeacher, alignment: Alignment, targets: tuple[AlignedTarget, ...], job: CachePass
) -> CachedTeacher:
    """Run a teacher over every view that the epochs will show; rows that an earlier run has stored are kept.

    With a single student whose target is narrower than the teacher's output, the targets are stored, unless
    `cache.keep` demands outputs, which students with other alignments can read too. A fixed view counts as one view.
    With `cache.features` the rows are those of a file, in a cache of their own.

    Args:
        teacher: on the run's device.
        alignment: settings of the targets.
        targets: its alignment with each student.
        job: images and views.

    Raises:
        ValueError: room for the outputs neither in the cache nor in the run directory; values beyond float16; see also
            `import_features`.
    """
    files, run, dtype = job.files, job.run, job.cache.dtype
    num_views = 1 if isinstance(job.teacher_view, FixedView) else job.cache.views
    aligned = job.cache.keep == "smaller" and len(targets) == 1 and targets[0].dim < teacher.dim
    dim = targets[0].dim if aligned else teacher.dim
    num_bytes = num_views * store_bytes(len(files), dim, dtype)
    record = cache_record(teacher, alignment, targets[0] if aligned else None, job)

    def open_stores(root: Path) -> tuple[Store, ...]:
        if run.is_main:
            content = "aligned targets" if aligned else f"outputs ({teacher.output})"
            size = f"{num_bytes / 2**20:.1f} MiB in {root}"
            print(f"teacher cache: {num_views} views x {len(files)} images x {dim} {dtype} {content} = {size}")
        return tuple(
            Store.open(
                root,
                {**record, "view_number": view},
                len(files),
                dim,
                run,
                dtype,
                num_stores=num_views,
                batch_size=_BATCH_SIZE,
            )
            for view in range(num_views)
        )

    try:
        stores = open_stores(job.own if job.own.exists() else cache_directory("teacher-outputs"))
    except CacheError as error:
        if run.is_main:
            warn_once(f"{error}; the run keeps its own copy")
        stores = open_stores(job.own)
    inputs = [teacher.backbone.spec.input]
    views = Views(job.view, job.teacher_view, [], inputs, colours=colours_on(run.device))
    dataset = job.dataset(views)
    imported = None
    if job.cache.features is not None:
        align = targets[0] if aligned else None
        if run.is_main and stores[0].num_missing:
            import_features(job.cache.features, stores[0], teacher, align, dataset, run.device)
        run.wait()
        imported = read_import(stores[0])
    held = teacher.held(job.amp, run.device)
    progress = Progress(num_views * len(files), run, "teacher", done=sum(len(s) - s.num_missing for s in stores))
    for view, store in enumerate(stores):
        together = store.chunk_rows // _BATCH_SIZE  # batches of one file, which one process writes
        batches = EvaluationBatches(len(files), _BATCH_SIZE, run, epoch=view, mask=store.missing, together=together)
        run.wait()  # every process has read which rows are missing before one of them writes
        loader = prefetch(build_loader(dataset, batches, job.workers), run.device)
        with store:
            for batch in progress.over(loader, close=False):
                progress.skip(batch.broken)
                store.mark_broken(torch.tensor(batch.broken_indices, dtype=torch.long))
                if len(batch):
                    with autocast(job.amp, run.device):
                        features = held(batch.on(run.device)[0]).features
                    store.write(batch.indices, targets[0](features) if aligned else features)
            teacher.finish_pass()
    progress.close()
    run.wait()
    return CachedTeacher(stores=stores, aligned=aligned, imported=imported)


def cache_record(
    teacher: FrozenTeacher, alignment: Alignment, target: AlignedTarget | None, job: CachePass
) -> dict[str, object]:
    """Everything that the rows of a cache depend on; a change of any of it makes another cache."""
    spec = teacher.backbone.spec
    seen = job.view if isinstance(job.teacher_view, SameView) else job.teacher_view
    return {
        "teacher": [teacher.sha256, spec.name, spec.arguments],
        "head": teacher.head_sha256,
        "output": teacher.output,
        "feature": teacher.backbone.spec.feature,
        "input": asdict(spec.input),
        "view": [type(seen).__name__, asdict(seen)],
        "shared": isinstance(job.teacher_view, SameView),
        "seed": None if isinstance(job.teacher_view, FixedView) else job.seed,
        "data": job.files.stamp,
        **describe_decoding(as_stored=job.as_stored),
        "amp": job.amp,
        "alignment": None if target is None else [*settings(alignment), weights_sha256(target)],
        **({} if job.cache.features is None else {"features": file_sha256(job.cache.features)}),
    }
