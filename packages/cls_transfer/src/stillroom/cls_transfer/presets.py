"""The runs we stand behind, each a lab note. Every field can be changed by its flag."""

from collections.abc import Callable
from pathlib import Path

from stillroom.cls_transfer.config import ClassifyConfig


def finetune(*, checkpoint: str, train: Path, test: Path, out: Path) -> ClassifyConfig:
    """Fine-tune every weight of a checkpoint on labelled images: KDEP's recipe, with a cosine in place of its steps.

    SGD, lr 1e-3, weight decay 5e-4, batch 64, 150 epochs (He et al., CVPR 2022, appendix; there: x0.1 every 50 epochs).
    """
    return ClassifyConfig(checkpoint=checkpoint, train=train, test=test, out=out)


def scratch(*, checkpoint: str, train: Path, test: Path, out: Path) -> ClassifyConfig:
    """Train random weights (random:NAME) on labelled images: a supervised teacher, or the baseline of a student.

    SGD, lr 0.1, weight decay 5e-4, batch 128, 30 epochs, cosine: the usual recipe for small images.
    """
    return ClassifyConfig(
        checkpoint=checkpoint, train=train, test=test, out=out, lr=0.1, batch_size=128, epochs=30, min_scale=0.35
    )


def smoke(*, checkpoint: str, train: Path, test: Path, out: Path) -> ClassifyConfig:
    """One epoch of a small net, by default on the toy data: seconds, and proves only that it works."""
    return ClassifyConfig(
        checkpoint=checkpoint,
        train=train,
        test=test,
        out=out,
        lr=0.05,
        batch_size=32,
        epochs=1,
        log_every=1,
        save_every=2,
    )


PRESETS: dict[str, Callable[..., ClassifyConfig]] = {"finetune": finetune, "scratch": scratch, "smoke": smoke}
