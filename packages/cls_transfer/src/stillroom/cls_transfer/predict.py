"""Classify unlabelled images with a fine-tuned checkpoint."""

import csv
import io
from pathlib import Path

import torch

from stillroom.backbone import load_checkpoint
from stillroom.backbone.atomic import refuse_existing, write_file
from stillroom.backbone.checkpoint import load_heads
from stillroom.backbone.flags import DeviceName, OnBroken, Workers
from stillroom.backbone.heads import build_head
from stillroom.cls_transfer.initial import HEAD
from stillroom.cls_transfer.metrics import classify
from stillroom.cls_transfer.model import Classifier
from stillroom.images.files import read_images
from stillroom.images.labels import USUAL, Columns
from stillroom.runs import Run


def load_classifier(checkpoint: Path) -> tuple[Classifier, tuple[str, ...]]:
    """Load a fine-tuned backbone with its classifier, and the names of its classes.

    Raises:
        ValueError: `CheckpointError` if the checkpoint holds no classifier; a classifier whose outputs have no names.
    """
    backbone, manifest = load_checkpoint(checkpoint)
    tensors = load_heads(checkpoint, HEAD)
    classes = manifest.heads[HEAD].classes
    if not classes:
        raise ValueError(f"the classifier of {checkpoint} has no class names")
    if (num_outputs := manifest.heads[HEAD].out_dim) != len(classes):
        raise ValueError(f"the classifier of {checkpoint} has {num_outputs} outputs and {len(classes)} class names")
    head = build_head(manifest.heads[HEAD], tensors)
    assert isinstance(head, torch.nn.Sequential), "heads are rebuilt as nn.Sequential"
    return Classifier(backbone, head), classes


def predict(
    checkpoint: Path,
    images: Path,
    out: Path,
    *,
    top: int = 1,
    batch_size: int = 64,
    device: DeviceName = "auto",
    workers: Workers = "auto",
    on_broken: OnBroken = "refuse",
    columns: Columns = USUAL,
) -> Path:
    """Write the likeliest classes of every image as CSV: path, then class and probability of the first, second, ...

    Args:
        checkpoint: directory of a checkpoint with a classifier.
        images: a source of images, see `read_unlabelled` in stillroom-images, or one image.
        out: CSV file to write.
        top: classes per image.
        batch_size: images per forward pass.
        device, workers, on_broken, columns: see `ClassifyConfig`.

    Returns:
        `out`.

    Raises:
        ValueError: `out` exists, `top` is above the number of classes, no images; see also `load_classifier`.
    """
    refuse_existing(out)
    if batch_size < 1:
        raise ValueError(f"--batch-size is {batch_size}: it must be at least 1")
    if workers != "auto" and workers < 0:
        raise ValueError(f"--workers is {workers}: it must be at least 0")
    model, classes = load_classifier(checkpoint)
    if not 1 <= top <= len(classes):
        raise ValueError(f"--top is {top}: {checkpoint} predicts {len(classes)} classes")
    files = read_images(images, columns)
    run = Run.start(device)
    predictions = classify(
        model.to(run.device), files, run, batch_size=batch_size, workers=workers, on_broken=on_broken, label="predict"
    )
    probabilities, labels = predictions.logits.softmax(dim=1).topk(top, dim=1)
    if run.is_main:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", *(name for i in range(1, top + 1) for name in (f"class_{i}", f"probability_{i}"))])
        rows = (predictions.indices.tolist(), labels.tolist(), probabilities.tolist())
        for index, row_labels, row_probabilities in zip(*rows, strict=True):
            pairs = zip(row_labels, row_probabilities, strict=True)
            cells = [cell for label, p in pairs for cell in (classes[label], f"{p:.6f}")]
            writer.writerow([files.paths[index], *cells])
        write_file(out, text.getvalue())
    run.wait()
    run.close()
    return out
