"""Top-1 and top-5 accuracy of a classifier."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.backbone import Normalize
from stillroom.backbone.flags import OnBroken, Workers
from stillroom.cls_transfer.model import Classifier
from stillroom.images import EvaluationView, ImageDataset, Source
from stillroom.images.loaders import EvaluationBatches, build_loader
from stillroom.runs import Run
from stillroom.runs.progress import Progress


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions for images.

    Attributes:
        logits: (n, k) of the n images that could be read, for k classes.
        labels: (n,) their true classes.
        indices: (n,) their indices in the file list.
        broken: why the other images could not be read.
    """

    logits: Float[Tensor, "n k"]
    labels: Int[Tensor, " n"]
    indices: Int[Tensor, " n"]
    broken: list[str]

    def metrics(self) -> dict[str, float]:
        """Compute top-1 accuracy, and top-5 where there are more than five classes; fractions."""
        ranks = (self.logits.argsort(dim=1, descending=True, stable=True) == self.labels[:, None]).int().argmax(dim=1)
        metrics = {"top1": float((ranks == 0).double().mean())}
        if self.logits.shape[1] > 5:
            metrics["top5"] = float((ranks < 5).double().mean())
        return metrics

    @property
    def predicted(self) -> Int[Tensor, " n"]:
        """The class with the largest logit; of equal logits the first class, as in `metrics`."""
        return self.logits.argsort(dim=1, descending=True, stable=True)[:, 0]

    def by_class(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Compute the top-1 accuracy of each class that has images; fractions."""
        right = self.predicted == self.labels
        return {classes[i]: float(right[self.labels == i].double().mean()) for i in sorted(set(self.labels.tolist()))}


@torch.no_grad()
def classify(
    model: Classifier,
    files: Source,
    run: Run,
    *,
    batch_size: int = 64,
    workers: Workers = 1,
    on_broken: OnBroken = "refuse",
    as_stored: bool = False,
    label: str = "test",
) -> Predictions:
    """Classify images in the evaluation view, in float32, shared among the processes; the model's mode is restored.

    Args:
        model: on the run's device.
        files: labelled images.
        run: this process; every process gets all predictions.
        batch_size: images per forward pass.
        workers: processes that decode images.
        on_broken: see `OnBroken`.
        as_stored: read images as they are stored, not turned as their EXIF tags say.
        label: text of the progress bar.

    Raises:
        ValueError: no image could be read.
    """
    mode = model.training
    model.eval()
    spec = model.backbone.spec.input
    dataset = ImageDataset(files, EvaluationView(spec), on_broken=on_broken, as_stored=as_stored)
    loader = build_loader(dataset, EvaluationBatches(len(files), batch_size, run), workers)
    normalize = Normalize(spec).to(run.device)
    progress = Progress(len(files), run, label)
    parts: list[tuple[Tensor, Tensor]] = []
    for batch in progress.over(loader):
        progress.skip(batch.broken)
        if len(batch):
            parts.append((batch.indices, model(normalize(batch.images.to(run.device))).float().cpu()))
    model.train(mode)
    gathered = [part for process in run.gather(parts) for part in process]
    broken = sorted({reason for process in run.gather(progress.broken) for reason in process})
    if not gathered:
        raise ValueError(f"no image of {files.root} could be read, for instance: {broken[0]}")
    indices, order = torch.cat([indices for indices, _ in gathered]).sort()
    logits = torch.cat([logits for _, logits in gathered])[order]
    labels = torch.tensor(files.labels or [-1] * len(files))[indices]
    return Predictions(logits, labels, indices, broken)
