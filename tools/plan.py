"""What a run will take, before it starts: hours, memory, cache and cost, from a short measurement on this machine.

python tools/plan.py --teacher DIR --student torchvision/resnet18 --data IMAGES --epochs 130 --devices 8 --cores 96
"""

import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from stillroom.backbone.checks import above, at_least, within
from stillroom.backbone.command import report_errors
from stillroom.backbone.flags import Amp, DeviceName
from stillroom.backbone.names import refuse_missing_checkpoint
from stillroom.images.files import refuse_missing_images
from stillroom.images.labels import USUAL, Columns
from stillroom.runs import format_table

if TYPE_CHECKING:  # --help and a wrong flag need no torch
    from stillroom.backbone import Backbone
    from stillroom.distill import DistillConfig
    from stillroom.distill.student import StudentModel
    from stillroom.distill.teacher import FrozenTeacher


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Predict the hours, memory, cache size and cost of a distillation run. docs/scale.md has the formula."""

    teacher: str
    """Checkpoint directory or backbone name; random:NAME plans without its weights."""
    student: str
    """Backbone name or checkpoint directory."""
    data: Path
    """Folder, file list or any other source of images like those of the run; up to 64 of them are decoded."""
    columns: Columns = USUAL
    method: Literal["kdep", "simreg"] = "kdep"
    """Preset whose view, head, alignment and optimiser are measured."""
    teacher_size: int | None = None
    """Input side of the teacher, pixels; None: that of its specification."""
    student_size: int | None = None
    """Input side of the student, pixels; None: that of its specification."""
    amp: Amp = "auto"
    """Number format of the forward passes, as in the run."""
    device: DeviceName = "auto"
    """Device that is measured, one; auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    images: int = 0
    """Images of the run; 0: as many as --data has."""
    epochs: int = 90
    """Passes over the images."""
    batch_size: int = 512
    """Images per step, over all devices."""
    alignment_images: int = 500_000
    """Images that the alignment is fitted on at most; simreg fits none."""
    cache_views: int = 0
    """Views per image whose teacher outputs are cached; 0: no cache."""
    devices: int = 1
    """Devices of a node, each like the one that is measured."""
    nodes: int = 1
    """Number of nodes."""
    cores: int = 0
    """Cores of a node that decode images, each like one of this machine; 0: those of this machine."""
    bandwidth: float = 0.0
    """What a node reads from the disk of the images, GB/s; 0: without a limit."""
    efficiency: float = 0.9
    """Rate of several devices over that of one times their number; 1 for one device."""
    price: float = 0.0
    """Cost of a device for an hour, in any currency."""
    seconds: float = 10.0
    """Time to measure each of decoding, teacher and student."""
    teacher_rate: float = 0.0
    """Images/s of the teacher on one device, instead of a measurement; 0: measured."""
    student_rate: float = 0.0
    """Images/s of the student's step on one device, instead of a measurement; 0: measured."""
    loader_rate: float = 0.0
    """Images/s that one core decodes into the run's views, instead of a measurement; 0: measured."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one device and one core do.

    Args:
        teacher: images/s of its forward pass.
        student: images/s of forward pass, backward pass and optimiser.
        loader: images/s that one core decodes into the views of one step.
        file_bytes: mean size of an image file.
        fixed_bytes: weights, gradients and optimiser state on each device.
        image_bytes: what the student's backward pass keeps, per image.
        row_bytes: of one cached row: the teacher's output, or the aligned target of KDEP where that is smaller.
    """

    teacher: float
    student: float
    loader: float
    file_bytes: float
    fixed_bytes: float
    image_bytes: float
    row_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A prediction.

    Args:
        hours: of the alignment, the filling of the cache and the epochs.
        rate: images/s of the epochs.
        limit: what sets that rate: devices, cores or disk.
        cores_needed: on each node, for the devices to set it.
        read_bytes: per second, by each node.
        device_bytes: memory of each device.
        cache_bytes: on the shared disk.
        cost: of all devices.
    """

    hours: dict[str, float]
    rate: float
    limit: str
    cores_needed: int
    read_bytes: float
    device_bytes: float
    cache_bytes: float
    cost: float


def predict(one: Measured, settings: Settings) -> Plan:
    """Predict a run from what one device and one core do.

    Every pass runs at the smallest of three rates: that of G devices, of C cores, and of the disk. A live epoch costs a
    device 1/teacher + 1/student seconds per image, a cached one 1/student.
    """
    devices = settings.nodes * settings.devices
    scale = devices * (settings.efficiency if devices > 1 else 1.0)
    cores = settings.nodes * settings.cores * one.loader
    disk = settings.nodes * settings.bandwidth * 1e9 / one.file_bytes if settings.bandwidth else math.inf
    live = 0 if settings.cache_views else 1 / one.teacher
    limits = {"devices": scale / (live + 1 / one.student), "cores": cores, "disk": disk}
    limit = min(limits, key=lambda name: limits[name])
    forward = min(scale * one.teacher, cores, disk)
    fitted = min(settings.images, settings.alignment_images) if settings.method == "kdep" else 0
    seconds = {
        "alignment": fitted / forward,
        "cache": settings.cache_views * settings.images / forward,
        "epochs": settings.epochs * settings.images / limits[limit],
    }
    hours = {name: value / 3600 for name, value in seconds.items()}
    return Plan(
        hours=hours,
        rate=limits[limit],
        limit=limit,
        cores_needed=math.ceil(limits["devices"] / one.loader / settings.nodes),
        read_bytes=limits[limit] * one.file_bytes / settings.nodes,
        device_bytes=one.fixed_bytes + math.ceil(settings.batch_size / devices) * one.image_bytes,
        cache_bytes=settings.cache_views * settings.images * one.row_bytes,
        cost=sum(hours.values()) * devices * settings.price,
    )


def measure(settings: Settings) -> tuple[Measured, int]:
    """Measure one device and one core of this machine; also the number of images of --data.

    Raises:
        ValueError: unknown nets, sizes that they do not take, images that cannot be read.
    """
    import torch  # noqa: PLC0415

    from stillroom.distill.alignment_file import build_alignment  # noqa: PLC0415
    from stillroom.distill.nets import Net  # noqa: PLC0415
    from stillroom.distill.presets import PRESETS  # noqa: PLC0415
    from stillroom.distill.student import build_student, build_student_backbone  # noqa: PLC0415
    from stillroom.distill.teacher import build_teacher  # noqa: PLC0415
    from stillroom.images import read_unlabelled  # noqa: PLC0415
    from stillroom.runs import Run  # noqa: PLC0415
    from stillroom.runs.hardware import choose_amp, fast_float32, hold_weights  # noqa: PLC0415
    from stillroom.runs.store import store_bytes  # noqa: PLC0415

    config = PRESETS[settings.method](teacher=("t",), student=("s",), data=settings.data, out=Path("planned"))
    device = Run.start(settings.device).device
    feature = config.student.feature[0]
    teacher = build_teacher(Net(name=settings.teacher, size=settings.teacher_size, feature=feature)).to(device)
    backbone = build_student_backbone(Net(name=settings.student, size=settings.student_size, feature=feature), 0)
    dim = build_alignment(config.alignment, teacher.dim, backbone.spec.dim).dim
    student = build_student(backbone, [teacher], [dim], head=config.head, dense=config.dense, seed=0).to(device).train()
    files = read_unlabelled(settings.data, settings.columns)
    share = max(2, min(settings.batch_size // (settings.nodes * settings.devices), 64))
    amp = choose_amp(settings.amp, device)
    with fast_float32(device):
        held = hold_weights(teacher, amp, device)
        pixels = torch.randint(0, 256, (share, 3, *[teacher.backbone.spec.input.size] * 2), dtype=torch.uint8)
        teacher_rate = settings.teacher_rate or share / seconds_of(
            lambda: held(pixels.to(device)), settings, amp, device
        )
        step = student_step(config, student, share, dim, amp, device)
        student_rate = settings.student_rate or share / seconds_of(step, settings, "none", device)
        kept = kept_bytes(student, share, amp, device) / share
    student_bytes = sum(parameter.nbytes for parameter in student.parameters())
    teacher_bytes = sum(parameter.nbytes for parameter in teacher.parameters())
    copy_bytes = 0 if held is teacher else sum(parameter.nbytes for parameter in held.parameters())
    one = Measured(
        teacher=teacher_rate,
        student=student_rate,
        loader=settings.loader_rate or decode_rate(settings, config, teacher, backbone),
        file_bytes=float(files.reader.sizes(files.all_rows()[:: math.ceil(len(files) / 64)]).mean()),
        fixed_bytes=teacher_bytes + copy_bytes + 3 * student_bytes,  # weights, gradients, momentum
        image_bytes=kept,
        row_bytes=store_bytes(1, min(teacher.dim, backbone.spec.dim) if settings.method == "kdep" else teacher.dim),
    )
    return one, len(files)


def seconds_of(call: Any, settings: Settings, amp: Amp, device: Any) -> float:
    """The median time of a call, after a warm-up, within the seconds that were asked for."""
    import torch  # noqa: PLC0415

    from stillroom.runs.hardware import autocast  # noqa: PLC0415

    times: list[float] = []
    deadline = time.perf_counter() + settings.seconds
    while len(times) < 4 or (time.perf_counter() < deadline and len(times) < 100):
        began = time.perf_counter()
        with autocast(amp, device):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def student_step(config: "DistillConfig", student: "StudentModel", share: int, dim: int, amp: Amp, device: Any) -> Any:
    """A function that takes one step of a student towards random targets."""
    import torch  # noqa: PLC0415

    from stillroom.distill.distances import distance  # noqa: PLC0415
    from stillroom.distill.student import build_optimizer  # noqa: PLC0415
    from stillroom.runs.hardware import autocast  # noqa: PLC0415

    side = student.backbone.spec.input.size
    pixels = torch.randint(0, 256, (share, 3, side, side), dtype=torch.uint8)
    target = torch.rand(share, dim, device=device)
    optimizer = build_optimizer(config.optimizer, [student], lr=1e-6, weight_decay=0.0)

    def step() -> None:
        with autocast(amp, device):
            [prediction] = student(pixels.to(device)).predictions
        distance(config.distance, prediction, target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def kept_bytes(student: "StudentModel", share: int, amp: Amp, device: Any) -> int:
    """The bytes that a student's forward pass keeps for its backward pass, without its weights."""
    import torch  # noqa: PLC0415

    from stillroom.runs.hardware import autocast  # noqa: PLC0415

    weights = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    side = student.backbone.spec.input.size
    pixels = torch.zeros(share, 3, side, side, dtype=torch.uint8, device=device)
    with autocast(amp, device), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = student(pixels)
    assert output.predictions, "the graph is alive until here, so no memory was used twice"
    return sum(kept.values())


def decode_rate(settings: Settings, config: "DistillConfig", teacher: "FrozenTeacher", student: "Backbone") -> float:
    """Images/s that this process decodes into the views of one step."""
    from stillroom.distill.views import Views  # noqa: PLC0415
    from stillroom.images import ImageDataset, read_unlabelled  # noqa: PLC0415
    from stillroom.images.loaders import build_loader  # noqa: PLC0415

    files = read_unlabelled(settings.data, settings.columns)
    live = [] if settings.cache_views else [teacher.backbone.spec.input]
    views = Views(config.view, config.teacher_view, [student.spec.input.size], live)
    chosen = range(0, len(files), math.ceil(len(files) / 64))
    keys = [[(0, index)] for index in chosen]
    times: list[float] = []
    deadline = time.perf_counter() + settings.seconds
    while not times or time.perf_counter() < deadline:
        began = time.perf_counter()
        for _ in build_loader(ImageDataset(files, views), keys, 0):
            pass
        times.append(time.perf_counter() - began)
    return len(keys) / min(times)


def report(plan: Plan, one: Measured, settings: Settings) -> str:
    """The plan as a table, with what was measured."""
    devices = settings.nodes * settings.devices
    rows = [
        ["one device", f"teacher {one.teacher:,.0f} images/s, student's step {one.student:,.0f} images/s"],
        ["one core", f"{one.loader:,.0f} images/s"],
        ["rate of the epochs", f"{plan.rate:,.0f} images/s, limited by the {plan.limit}"],
        ["cores needed on each node", f"{plan.cores_needed:,} (there are {settings.cores:,})"],
        ["read by each node", f"{plan.read_bytes / 1e9:.2f} GB/s"],
        *[[f"hours, {name}", f"{hours:,.2f}"] for name, hours in plan.hours.items() if hours],
        ["hours", f"{sum(plan.hours.values()):,.2f}"],
        ["memory of each device", f"{plan.device_bytes / 2**30:,.1f} GiB and what the libraries take"],
        ["cache", f"{plan.cache_bytes / 2**30:,.1f} GiB"],
        *([["cost", f"{plan.cost:,.2f}"]] if settings.price else []),
    ]
    run = f"{settings.images:,} images x {settings.epochs} epochs on {settings.nodes} x {settings.devices} devices"
    return f"{run}, {math.ceil(settings.batch_size / devices)} images a device and step\n{format_table(['', ''], rows)}"


def check(settings: Settings) -> None:
    """Validate the settings before torch is imported.

    Raises:
        ValueError: numbers out of range, or a path that does not exist.
    """
    at_least(settings, 1, "epochs", "batch_size", "devices", "nodes", "alignment_images")
    at_least(settings, 0, "images", "cores", "cache_views", "bandwidth", "price")
    at_least(settings, 0, "teacher_rate", "student_rate", "loader_rate")
    above(settings, 0, "seconds")
    within(settings, 0, 1, "efficiency", ends="(]")
    refuse_missing_images(settings.data)
    refuse_missing_checkpoint(settings.teacher)
    refuse_missing_checkpoint(settings.student)


@report_errors
def main() -> None:
    """Measure, predict, and print the plan."""
    settings = tyro.cli(Settings, description=__doc__)
    check(settings)
    from stillroom.runs.hardware import usable_cores  # noqa: PLC0415  # it imports torch

    one, num_images = measure(settings)
    settings = replace(settings, images=settings.images or num_images, cores=settings.cores or usable_cores())
    print(report(predict(one, settings), one, settings))


if __name__ == "__main__":
    main()
