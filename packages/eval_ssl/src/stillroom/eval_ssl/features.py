"""One pass over labelled images: frozen pooled features in the order of the files."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stillroom.backbone import Backbone, EvaluationView, ImageDataset, ImageFiles, Normalize, Run
from stillroom.backbone.images import EvaluationBatches, OnBroken, build_loader
from stillroom.backbone.progress import Progress


@dataclass(frozen=True)
class FeatureSet:
    """Features (n, d) with labels (n,), and the images that could not be read and are not among them."""

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    broken: tuple[str, ...] = ()


@torch.no_grad()
def extract_features(
    backbone: Backbone,
    files: ImageFiles,
    run: Run,
    *,
    batch_size: int = 64,
    workers: int = 1,
    on_broken: OnBroken = "refuse",
    head: nn.Module | None = None,
    label: str = "features",
) -> FeatureSet:
    """Run a backbone over images in its own input specification, float32, in eval mode.

    The images go through the net in fixed batches of `batch_size`, dealt out to the processes: the number of processes
    changes no bit. Every process returns all features.

    Args:
        backbone: on the run's device.
        files: labelled images.
        run: this process.
        batch_size: images per forward pass.
        workers: processes that decode images.
        on_broken: see `OnBroken`.
        head: what the pooled feature goes through first, on the run's device; None: nothing.
        label: of the progress bar.

    Raises:
        ValueError: unlabelled files, no readable image, or features that are not finite, with the image's name.
    """
    if files.labels is None:
        raise ValueError(f"{files.root} was read without labels: evaluation needs class folders")
    backbone.eval()
    dataset = ImageDataset(files, EvaluationView(backbone.spec.input), on_broken=on_broken)
    loader = build_loader(dataset, EvaluationBatches(len(files), batch_size, run), workers)
    normalize = Normalize(backbone.spec.input).to(run.device)
    progress = Progress(len(files), run, label)
    parts: list[tuple[Tensor, Tensor]] = []
    for batch in progress.over(loader):
        progress.skip(batch.broken)
        if len(batch):
            pooled = backbone(normalize(batch.images.to(run.device))).pooled.float()
            parts.append((batch.indices, (pooled if head is None else head(pooled)).cpu()))
    gathered = [part for one in run.gather(parts) for part in one]
    broken = sorted({sentence for one in run.gather(progress.broken) for sentence in one})
    if not gathered:
        raise ValueError(f"no image of {files.root} could be read, for instance: {broken[0]}")
    indices = torch.cat([part[0] for part in gathered])
    order = indices.argsort()
    indices, features = indices[order], torch.cat([part[1] for part in gathered])[order]
    bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten()
    if len(bad):
        first = files.paths[int(indices[bad[0]])]
        raise ValueError(f"{len(bad)} images give features that are not finite, the first is {first}")
    return FeatureSet(features, torch.tensor(files.labels)[indices], tuple(broken))
