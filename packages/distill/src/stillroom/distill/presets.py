"""Presets: recommended runs with their source, cost and expected result. A flag overrides any field.

A preset takes names of teachers and students (some have defaults), images and a run directory.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stillroom.distill.config import DistillConfig, Monitor
from stillroom.distill.nets import Students, Teachers
from stillroom.distill.slots import (
    ChannelSelection,
    CosineDistance,
    KdepView,
    KlDivergence,
    LinearHead,
    MlpHead,
    Mse,
    Raw,
    Svd,
    WeakView,
)
from stillroom.runs.schedule import Cosine, Step

Names = tuple[str, ...]
R18: Names = ("torchvision/resnet18",)
R50: Names = ("torchvision/resnet50",)
MOBILENET: Names = ("torchvision/mobilenet_v2",)


def kdep(*, teacher: Names, student: Names, data: Path, out: Path) -> DistillConfig:
    """KDEP: the student regresses SVD + PTS of the teacher's feature before its last ReLU, with no head and no label.

    He et al., CVPR 2022: 128,000 ImageNet images (10 %), batch 512, lr 0.3, 90 epochs = 22,500 steps, about 8 h there.
    Expected for ResNet-50 -> ResNet-18: 77.07 % mean top-1 over CIFAR-100, DTD, Caltech-256 and CUB-200 after
    fine-tuning, which is what supervised training reaches with all of ImageNet in 40 h. Unlike the paper, the target is
    scaled to a mean square of 1, so that one loss weight serves every teacher. With few or small images use
    --batch-size 64 --lr 1 --loss-weight 0.3 --view.min-scale 0.35 schedule:cosine.
    """
    return DistillConfig(
        teacher=Teachers(name=teacher), student=Students(name=student), data=data, out=out, schedule=Step(every=30)
    )


def kdep_ms_r18(*, teacher: Names, student: Names = R18, data: Path, out: Path) -> DistillConfig:
    """KDEP from Microsoft Vision's ResNet-50 into ResNet-18; the teacher is an imported checkpoint with BGR input.

    He et al., CVPR 2022, their main row: 77.07 % mean top-1 of four classification sets at 8 h with 10 % of ImageNet.
    """
    return replace(kdep(teacher=teacher, student=student, data=data, out=out), method="kdep-ms-r18")


def kdep_sp_r18(*, teacher: Names = R50, student: Names = R18, data: Path, out: Path) -> DistillConfig:
    """KDEP from the supervised ResNet-50 into ResNet-18.

    He et al., CVPR 2022, 90 epochs of 250 steps on 10 % of ImageNet. The released loss weight of 20 offsets this
    teacher's small features; ours is that of `kdep`, as the target has a mean square of 1. No expected number is known.
    """
    return replace(kdep(teacher=teacher, student=student, data=data, out=out), method="kdep-sp-r18")


def kdep_ms_mnv2(*, teacher: Names, student: Names = MOBILENET, data: Path, out: Path) -> DistillConfig:
    """KDEP from Microsoft Vision's ResNet-50 into MobileNet-V2, 1280 components, lr 0.1.

    He et al., CVPR 2022, 90 epochs of 250 steps on 10 % of ImageNet. The student is read before the ReLU6 of its
    last 1x1 convolution. No expected number is known.
    """
    return replace(kdep(teacher=teacher, student=student, data=data, out=out), method="kdep-ms-mnv2", lr=0.1)


def as_released(config: DistillConfig, loss_weight: float) -> DistillConfig:
    """Apply the departures of KDEP's released code: RGB for every teacher, SVD of augmented features, raw target."""
    return replace(
        config,
        method=f"legacy-{config.method}",
        teacher=replace(config.teacher, channel_order=("rgb",)),
        alignment_view="training",
        distance=Mse(unit_target=False),
        loss_weight=loss_weight,
        monitor=Monitor(held_out=0.0),
    )


def legacy_kdep_ms_r18(*, teacher: Names, student: Names = R18, data: Path, out: Path) -> DistillConfig:
    """KDEP's released recipe for Microsoft Vision's ResNet-50: RGB although its authors state BGR, loss x3.

    He et al., CVPR 2022: 77.07 % mean top-1 of four sets after 8 h with 10 % of ImageNet, 78.21 % after 40 h. The basis
    is fitted on randomly augmented views; the target is not scaled.
    """
    return as_released(kdep_ms_r18(teacher=teacher, student=student, data=data, out=out), 3.0)


def legacy_kdep_sp_r18(*, teacher: Names = R50, student: Names = R18, data: Path, out: Path) -> DistillConfig:
    """KDEP's released recipe for the supervised ResNet-50: loss x20, augmented basis, unscaled target."""
    return as_released(kdep_sp_r18(teacher=teacher, student=student, data=data, out=out), 20.0)


def legacy_kdep_ms_mnv2(*, teacher: Names, student: Names = MOBILENET, data: Path, out: Path) -> DistillConfig:
    """KDEP's released recipe from Microsoft Vision's ResNet-50 into MobileNet-V2: RGB, loss x3, augmented basis."""
    return as_released(kdep_ms_mnv2(teacher=teacher, student=student, data=data, out=out), 3.0)


def simreg(*, teacher: Names, student: Names, data: Path, out: Path) -> DistillConfig:
    """SimReg: a 4-layer MLP on the student regresses the teacher's feature, 2 - 2 cos, and is dropped afterwards.

    Navaneet et al., BMVC 2021: ImageNet, batch 256, lr 0.05, weight decay 1e-4, 130 epochs of cosine, one weak view for
    both nets; 2.5 days for ResNet-50 -> ResNet-18 on four RTX 2080 Ti. Expected from a MoCo-v2 ResNet-50: ResNet-18
    54.8 % 1-NN and 65.1 % linear on ImageNet, MobileNet-V2 55.5 % and 69.1 %.
    """
    return DistillConfig(
        teacher=Teachers(name=teacher, feature=("after",)),
        student=Students(name=student, feature=("after",)),
        data=data,
        out=out,
        method="simreg",
        view=WeakView(),
        alignment=Raw(),
        head=MlpHead(layers=4),
        distance=CosineDistance(),
        epochs=130,
        batch_size=256,
        lr=0.05,
        weight_decay=1e-4,
        schedule=Cosine(),
        loss_weight=1.0,
    )


def simreg_r18(*, teacher: Names, student: Names = R18, data: Path, out: Path) -> DistillConfig:
    """SimReg into ResNet-18: from a MoCo-v2 ResNet-50 54.8 % 1-NN, 65.1 % linear; BYOL (cached) 56.7 %, 66.8 %."""
    return replace(simreg(teacher=teacher, student=student, data=data, out=out), method="simreg-r18")


def simreg_mnv2(*, teacher: Names, student: Names = MOBILENET, data: Path, out: Path) -> DistillConfig:
    """SimReg into MobileNet-V2: from a MoCo-v2 ResNet-50 55.5 % 1-NN, 69.1 % linear."""
    return replace(simreg(teacher=teacher, student=student, data=data, out=out), method="simreg-mnv2")


def simreg_r50(*, teacher: Names, student: Names = R50, data: Path, out: Path) -> DistillConfig:
    """SimReg into ResNet-50: from a SimCLR ResNet-50x4 (8192-d) 60.3 % 1-NN, 74.2 % linear, with a cached teacher.

    That is `--cache.views 1 teacher-view:fixed-view`: one vector per image, computed once; the student's views stay
    new.
    """
    return replace(simreg(teacher=teacher, student=student, data=data, out=out), method="simreg-r50")


def simreg_released(config: DistillConfig) -> DistillConfig:
    """Apply the departures of SimReg's released code: the rate changes once per epoch, no image is held out."""
    return replace(
        config,
        method=f"legacy-{config.method}",
        schedule=Cosine(change_every="epoch"),
        monitor=Monitor(held_out=0.0),
    )


def legacy_simreg_r18(*, teacher: Names, student: Names = R18, data: Path, out: Path) -> DistillConfig:
    """SimReg's released recipe into ResNet-18: 54.8 % 1-NN, 65.1 % linear from a MoCo-v2 ResNet-50.

    Its "2 layers" is a linear map: head:mlp-head --head.layers 2 --head.as-released.
    """
    return simreg_released(simreg_r18(teacher=teacher, student=student, data=data, out=out))


def legacy_simreg_mnv2(*, teacher: Names, student: Names = MOBILENET, data: Path, out: Path) -> DistillConfig:
    """SimReg's released recipe into MobileNet-V2: 55.5 % 1-NN, 69.1 % linear from a MoCo-v2 ResNet-50."""
    return simreg_released(simreg_mnv2(teacher=teacher, student=student, data=data, out=out))


def legacy_simreg_r50(*, teacher: Names, student: Names = R50, data: Path, out: Path) -> DistillConfig:
    """SimReg's released recipe into ResNet-50: 60.3 % 1-NN, 74.2 % linear from a SimCLR ResNet-50x4 (cached)."""
    return simreg_released(simreg_r50(teacher=teacher, student=student, data=data, out=out))


def conv1x1(*, teacher: Names, student: Names, data: Path, out: Path) -> DistillConfig:
    """KDEP's strongest baseline: a learned 1x1 convolution with batch norm maps the student to the teacher's width.

    He et al., CVPR 2022, figure 1: 74.02 % mean top-1 at 8 h with 10 % of ImageNet, where KDEP has 77.07 %.
    """
    return replace(
        kdep(teacher=teacher, student=student, data=data, out=out),
        method="conv1x1",
        alignment=Raw(),
        head=LinearHead(batch_norm="after"),
    )


def logits(*, teacher: Names, student: Names, data: Path, out: Path) -> DistillConfig:
    """Logits distillation, T = 4: the student has a linear head of the classes of the teacher's own classifier.

    Hinton et al. 2015; He et al., CVPR 2022, figure 1: 73.63 % mean top-1 at 8 h with 10 % of ImageNet.
    """
    return replace(
        kdep(teacher=teacher, student=student, data=data, out=out),
        method="logits",
        teacher=Teachers(name=teacher, feature=("after",), output=("logits",)),
        student=Students(name=student, feature=("after",)),
        alignment=Raw(),
        head=LinearHead(batch_norm="none"),
        distance=KlDivergence(temperature=4.0),
        loss_weight=1.0,
        lr=0.1,
    )


def svd(*, teacher: Names, student: Names, data: Path, out: Path) -> DistillConfig:
    """SVD without PTS, KDEP's ablation at the cost of `kdep`: without PTS the first components dominate the loss.

    He et al., CVPR 2022, section 4.4. No expected number is known.
    """
    return replace(kdep(teacher=teacher, student=student, data=data, out=out), method="svd", alignment=Svd())


def channels(*, teacher: Names, student: Names, data: Path, out: Path) -> DistillConfig:
    """The teacher's channels of largest variance, KDEP's comparison at the cost of `kdep`; others: --alignment.by.

    He et al., CVPR 2022, section 4.4. No expected number is known.
    """
    return replace(
        kdep(teacher=teacher, student=student, data=data, out=out), method="channels", alignment=ChannelSelection()
    )


def smoke(
    *,
    teacher: Names = ("random:cifar/resnet32",),
    student: Names = ("random:cifar/resnet20",),
    data: Path = Path("data/toy/unlabelled"),
    out: Path = Path("runs/smoke"),
) -> DistillConfig:
    """A run of seconds through every part of a KDEP run, to check that they work.

    Random teacher, two epochs at 32 px, on any folder of 128 images or more, for instance that of
    tools/make_toy_data.py. Under 20 s on two CPU cores.
    """
    return DistillConfig(
        teacher=Teachers(name=teacher),
        student=Students(name=student),
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


PRESETS: dict[str, Callable[..., DistillConfig]] = {
    preset.__name__.replace("_", "-"): preset
    for preset in (
        kdep,
        simreg,
        conv1x1,
        logits,
        svd,
        channels,
        kdep_ms_r18,
        kdep_sp_r18,
        kdep_ms_mnv2,
        simreg_r18,
        simreg_mnv2,
        simreg_r50,
        legacy_kdep_ms_r18,
        legacy_kdep_sp_r18,
        legacy_kdep_ms_mnv2,
        legacy_simreg_r18,
        legacy_simreg_mnv2,
        legacy_simreg_r50,
        smoke,
    )
}
