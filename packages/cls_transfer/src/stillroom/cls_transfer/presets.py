"""Presets, each documented as a lab note. Every field can be changed by its flag."""

from collections.abc import Callable
from pathlib import Path

from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.runs.schedule import Step


def finetune(*, checkpoint: tuple[str, ...], out: Path) -> ClassifyConfig:
    """Fine-tune every weight of a checkpoint on labelled images: KDEP's recipe, with a cosine in place of its steps.

    SGD, lr 1e-3, weight decay 5e-4, batch 64, 150 epochs (He et al., CVPR 2022, appendix; there: x0.1 every 50 epochs).
    """
    return ClassifyConfig(checkpoint=checkpoint, out=out)


def scratch(*, checkpoint: tuple[str, ...], out: Path) -> ClassifyConfig:
    """Train random weights (random:NAME) on labelled images: a supervised teacher, or the baseline of a student.

    SGD, lr 0.1, weight decay 5e-4, batch 128, 30 epochs, cosine: the usual recipe for small images.
    """
    return ClassifyConfig(checkpoint=checkpoint, out=out, lrs=(0.1,), batch_size=128, epochs=30, min_scale=0.35)


def legacy_kdep(*, checkpoint: tuple[str, ...], out: Path) -> ClassifyConfig:
    """KDEP's fine-tuning as its released code does it (He et al., CVPR 2022): only for comparison with its numbers.

    SGD, lr 1e-3 (CUB: also 1e-2), weight decay 5e-4, batch 64, 150 epochs, x0.1 every 50; images in [0, 1] without mean
    and std, but CIFAR-100 by its own; the first 60 files of each class of Caltech-256; the epoch that is best on the
    test images, of every fifth (1, 6, ..., 146) and the last: its library's log-iters is 5. Expected from KDEP's
    ResNet-18: 77.1 % in the mean of CIFAR-100, DTD, Caltech-256 and CUB-200.
    """
    return ClassifyConfig(
        checkpoint=checkpoint,
        out=out,
        normalise=False,
        cifar100_statistics=True,
        choose="best-on-test",
        val_every=5,
        held_out=0.0,
        caltech_first=True,
        schedule=Step(every=50, gamma=0.1),
    )


def smoke(
    *, checkpoint: tuple[str, ...] = ("random:cifar/resnet20",), out: Path = Path("runs/smoke-cls")
) -> ClassifyConfig:
    """One epoch of a small net, by default on the toy data: takes seconds, and shows only that it works."""
    toy = Path("data/toy/heldout-shapes")
    return ClassifyConfig(
        checkpoint=checkpoint,
        train=toy / "train",
        test=toy / "val",
        out=out,
        lrs=(0.05,),
        batch_size=32,
        epochs=1,
        log_every=1,
        save_every=2,
    )


PRESETS: dict[str, Callable[..., ClassifyConfig]] = {
    "finetune": finetune,
    "scratch": scratch,
    "legacy-kdep": legacy_kdep,
    "smoke": smoke,
}
