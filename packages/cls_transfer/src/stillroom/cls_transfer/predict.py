"""Classes of images that nobody has labelled."""

import csv
import io
from pathlib import Path

import torch

from stillroom.backbone import Run, load_checkpoint, read_unlabelled
from stillroom.backbone.atomic import refuse_existing, write_file
from stillroom.backbone.checkpoint import load_heads
from stillroom.backbone.flags import DeviceName, OnBroken
from stillroom.backbone.heads import build_head
from stillroom.backbone.image_files import from_paths
from stillroom.cls_transfer.metrics import answer
from stillroom.cls_transfer.model import Classifier
from stillroom.cls_transfer.record import HEAD


def load_classifier(checkpoint: Path) -> tuple[Classifier, tuple[str, ...]]:
    """A fine-tuned backbone with its classifier, and the names of its classes.

    Raises:
        ValueError: `CheckpointError` where the checkpoint keeps no classifier; one whose classes have no names.
    """
    backbone, manifest = load_checkpoint(checkpoint)
    tensors = load_heads(checkpoint, HEAD)
    classes = manifest.heads[HEAD].classes
    if not classes:
        raise ValueError(f"the classifier of {checkpoint} does not name its classes")
    head = build_head(manifest.heads[HEAD], tensors)
    assert isinstance(head, torch.nn.Sequential), "heads are rebuilt as layers in a row"
    return Classifier(backbone, head), classes


def predict(
    checkpoint: Path,
    images: Path,
    out: Path,
    *,
    top: int = 1,
    batch_size: int = 64,
    device: DeviceName = "auto",
    workers: int = 1,
    on_broken: OnBroken = "refuse",
) -> Path:
    """Write a table of the likeliest classes of every image: path, then class and probability of the first, second, ...

    Args:
        checkpoint: directory of a checkpoint that keeps a classifier.
        images: a folder, whose subfolders mean nothing, a file list (.txt), or one image.
        out: CSV file to write.
        top: classes for each image.
        batch_size, device, workers, on_broken: of the pass.

    Returns:
        `out`.

    Raises:
        ValueError: `out` exists, more classes than there are, no images; see also `load_classifier`.
    """
    refuse_existing(out)
    if batch_size < 1:
        raise ValueError(f"--batch-size is {batch_size}: it must be at least 1")
    model, classes = load_classifier(checkpoint)
    if not 1 <= top <= len(classes):
        raise ValueError(f"--top is {top}: {checkpoint} tells {len(classes)} classes apart")
    alone = images.is_file() and images.suffix != ".txt"
    files = from_paths([images.resolve()]) if alone else read_unlabelled(images)
    run = Run.start(device)
    found = answer(
        model.to(run.device), files, run, batch_size=batch_size, workers=workers, on_broken=on_broken, label="predict"
    )
    shares, places = found.logits.softmax(dim=1).topk(top, dim=1)
    if run.is_main:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", *(name for i in range(1, top + 1) for name in (f"class_{i}", f"probability_{i}"))])
        for index, share, place in zip(found.indices.tolist(), shares.tolist(), places.tolist(), strict=True):
            cells = [cell for p, s in zip(place, share, strict=True) for cell in (classes[p], f"{s:.6f}")]
            writer.writerow([files.paths[index], *cells])
        write_file(out, text.getvalue())
    run.wait()
    run.close()
    return out
