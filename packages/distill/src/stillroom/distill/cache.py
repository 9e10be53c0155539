"""Teacher outputs on disk: one row per image and view, exact, so that every later epoch and student reads them."""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.backbone import ImageDataset, ImageFiles, Run, weights_sha256
from stillroom.backbone.loading import EvaluationBatches, build_loader
from stillroom.backbone.progress import Progress
from stillroom.backbone.store import Store, cache_directory, store_bytes
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.config import DistillConfig, SameView
from stillroom.distill.fit import settings
from stillroom.distill.teacher import FrozenTeacher
from stillroom.distill.views import FixedView, Views

_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class CachedTeacher:
    """What a teacher said: one store per view, of its outputs or, where that is smaller, of the aligned target.

    Args:
        stores: view v of image i is row i of store v.
        aligned: whether the rows are targets already.
    """

    stores: tuple[Store, ...]
    aligned: bool

    def read(self, epoch: int, indices: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """The rows of some images in one epoch, float32."""
        return self.stores[epoch % len(self.stores)].read(indices)


@torch.no_grad()
def fill_cache(
    config: DistillConfig,
    run: Run,
    files: ImageFiles,
    teacher: FrozenTeacher,
    targets: list[AlignedTarget],
) -> CachedTeacher:
    """Run a teacher over every view that the epochs will show, but for the rows that an earlier run has left.

    Where there is one student and its aligned target is narrower than the output, the targets are stored, unless
    `config.cache.keep` says that students with other alignments are to read the same cache. A fixed view is one view.

    Args:
        config: views, seed, alignment, precision.
        run: this process; each fills its own batches.
        files: the images.
        teacher: on the run's device.
        targets: each student's alignment of this teacher.

    Raises:
        ValueError: no room on the disk; values beyond float16.
    """
    fixed = isinstance(config.teacher_view, FixedView)
    many, dtype = 1 if fixed else config.cache.views, config.cache.dtype
    root = cache_directory("teacher-outputs")
    aligned = config.cache.keep == "smaller" and len(targets) == 1 and targets[0].dim < teacher.dim
    dim = targets[0].dim if aligned else teacher.dim
    needed = many * store_bytes(len(files), dim, dtype)
    if run.is_main:
        what = "aligned targets" if aligned else f"outputs ({teacher.output})"
        size = f"{needed / 2**20:.1f} MiB"
        print(f"teacher cache: {many} views x {len(files)} images x {dim} {dtype} {what} = {size} in {root}")
    record = cache_record(config, files, teacher, targets[0] if aligned else None)
    stores = tuple(
        Store.open(root, {**record, "view_number": view}, len(files), dim, run, dtype, num_stores=many)
        for view in range(many)
    )
    views = Views(config.view, config.teacher_view, [], [teacher.backbone.spec.input])
    dataset = ImageDataset(files, views, seed=config.seed, on_broken=config.on_broken)
    autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=config.amp == "bf16")
    progress = Progress(many * len(files), run, "teacher", done=sum(len(s) - s.num_missing for s in stores))
    for view, store in enumerate(stores):
        batches = EvaluationBatches(len(files), _BATCH_SIZE, run, epoch=view, mask=store.missing)
        run.wait()  # every process has looked at what is missing before one of them writes
        for batch in progress.over(build_loader(dataset, batches, config.workers), close=False):
            progress.skip(batch.broken)
            store.mark_broken(torch.tensor(batch.broken_indices, dtype=torch.long))
            if len(batch):
                with autocast:
                    output = teacher(batch.images.to(run.device, non_blocking=True))[0]
                store.write(batch.indices, targets[0](output) if aligned else output)
    progress.close()
    run.wait()
    return CachedTeacher(stores=stores, aligned=aligned)


def cache_record(
    config: DistillConfig,
    files: ImageFiles,
    teacher: FrozenTeacher,
    target: AlignedTarget | None,
) -> dict[str, object]:
    """All that the rows of a cache depend on; a change of any of it is another cache."""
    spec = teacher.backbone.spec
    seen = config.view if isinstance(config.teacher_view, SameView) else config.teacher_view
    return {
        "teacher": [teacher.sha256, spec.name, spec.arguments],
        "head": weights_sha256(teacher.head) if teacher.head is not None else None,
        "output": teacher.output,
        "feature": teacher.backbone.spec.feature,
        "input": asdict(spec.input),
        "view": [type(seen).__name__, asdict(seen)],
        "shared": isinstance(config.teacher_view, SameView),
        "seed": None if isinstance(config.teacher_view, FixedView) else config.seed,
        "data": files.stamp,
        "amp": config.amp,
        "alignment": None if target is None else [*settings(config.alignment), weights_sha256(target)],
    }
