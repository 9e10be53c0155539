"""Small runs that several tests, and the processes they start, share."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stillroom.backbone import Backbone, BackboneSpec, InputSpec
from stillroom.distill import DistillConfig, KdepView, Students, SvdPts, Teachers
from stillroom.distill.config import Cache, Monitor
from stillroom.distill.setup import RunSetup, build_setup, build_supervisions
from stillroom.distill.slots import CosineDistance, LinearHead, Raw
from stillroom.distill.teacher import Supervision
from stillroom.runs.run import read_metrics
from stillroom.runs.schedule import Cosine


def small_config(data: Path, out: Path, **changes) -> DistillConfig:
    """Two epochs of three steps at 16 px between two CIFAR ResNets, in this process."""
    settings = {
        "teacher": Teachers(name=("random:cifar/resnet20",), size=(16,)),
        "student": Students(name=("cifar/resnet20",), size=(16,)),
        "data": data,
        "out": out,
        "view": KdepView(min_scale=0.35),
        "epochs": 2,
        "batch_size": 32,
        "lr": 0.05,
        "schedule": Cosine(),
        "log_every": 1,
        "save_every": 1,
        "workers": 0,
        "device": "cpu",
    }
    return DistillConfig(**(settings | changes))


def weights_of(student: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint."""
    return load_file(student / "model.safetensors")


def losses_of(out: Path) -> list[float]:
    """The losses that a run logged, without the rows of its monitors."""
    return [row["loss"] for row in read_metrics(out) if "loss" in row]


def monitored_config(data: Path, out: Path) -> DistillConfig:
    """Two epochs with a batch norm in the head, cached teacher, monitors and a running average."""
    return small_config(
        data,
        out,
        alignment=Raw(),
        head=LinearHead(),
        distance=CosineDistance(),
        cache=Cache(views=2),
        monitor=Monitor(held_out=0.25, every=1),
        ema=0.5,
        batch_size=24,
    )


def start(config: DistillConfig) -> tuple[RunSetup, Supervision]:
    """The setup of a run, and its first teacher's supervision, with the cache filled."""
    setup = build_setup(config, None, has_knn=False)
    config.out.mkdir()
    return setup, build_supervisions(config, setup)[0]


def plain_teacher_and_config(data: Path, out: Path, alignment: Path | None) -> tuple[Backbone, DistillConfig]:
    """A run of 20 steps at lr 0.01 whose student has no batch norm (ConvNeXt), saved with fixed initial weights."""
    torch.manual_seed(5)
    teacher = Backbone.from_module(
        nn.Sequential(nn.Conv2d(3, 48, 7, 5), nn.Tanh()),
        BackboneSpec(name="module/Teacher", dim=48, pre_activation=True, input=InputSpec(size=24)),
    )
    config = small_config(
        data,
        out,
        teacher=Teachers(name=("fixed",)),
        student=Students(name=(str(data.parent / "initial"),), size=(32,)),
        alignment=SvdPts(dim=40),
        alignment_file=() if alignment is None else (alignment,),
        epochs=5,
        batch_size=24,
        lr=0.01,
    )
    return teacher, config
