"""The runs we stand behind, each a lab note: source, cost, expected number. Every field can be changed by its flag."""

from collections.abc import Callable
from pathlib import Path

from stillroom.distill.config import Cosine, DistillConfig, KdepView, Net, Step


def kdep(*, teacher: str, student: str, data: Path, out: Path) -> DistillConfig:
    """KDEP: the student regresses SVD + PTS of the teacher's feature before its last ReLU, with no head and no label.

    He et al., CVPR 2022: 128,000 ImageNet images (10 %), batch 512, lr 0.3, 90 epochs = 22,500 steps, about 8 h there.
    Expected for ResNet-50 -> ResNet-18: 77.07 % mean top-1 over CIFAR-100, DTD, Caltech-256 and CUB-200 after
    fine-tuning, which is what supervised training reaches with all of ImageNet in 40 h. Unlike the paper, the target is
    scaled to unit mean square, so that one loss weight serves every teacher. With few or small images: smaller batches
    (--batch-size 64 --lr 0.05), cosine schedule (schedule:cosine) and milder crops (--view.min-scale 0.35).
    """
    return DistillConfig(
        teacher=Net(name=teacher), student=Net(name=student), data=data, out=out, schedule=Step(every=30, gamma=0.1)
    )


def smoke(*, teacher: str, student: str, data: Path, out: Path) -> DistillConfig:
    """A run of seconds that goes through every part of a KDEP run and proves nothing but that they work.

    Random teacher, two epochs at 32 px; give it any folder of 128 images or more, for instance that of
    tools/make_toy_data.py. Under 20 s on two CPU cores.
    """
    return DistillConfig(
        teacher=Net(name=teacher or "random:cifar/resnet32"),
        student=Net(name=student or "random:cifar/resnet20"),
        data=data,
        out=out,
        view=KdepView(min_scale=0.35),
        epochs=2,
        batch_size=32,
        lr=0.05,
        schedule=Cosine(),
        log_every=1,
        save_every=2,
    )


PRESETS: dict[str, Callable[..., DistillConfig]] = {"kdep": kdep, "smoke": smoke}
