"""The whole training step on a GPU: no tensor on the wrong device, nothing that waits for the device.

Not in every step, and so allowed to wait: log lines, the check for collapse every 50 steps, monitors and states; with
--monitor.hours and several processes, the common clock. Allowed in every step: timm's Lars makes a scalar there.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stillroom.distill import Students, train
from stillroom.distill.alignment_file import AlignmentInputs, build_alignment
from stillroom.distill.config import Cache, Dense, DistillConfig, Monitor
from stillroom.distill.data import RunImages
from stillroom.distill.presets import PRESETS
from stillroom.distill.setup import RunSetup, build_students
from stillroom.distill.slots import AdamW, FixedView, KdepView, Lars
from stillroom.distill.teacher import CachedTeacher, Supervision, build_teachers
from stillroom.images.loaders import Batch
from stillroom.images.source import from_paths
from stillroom.runs import Run, RunDirectory
from stillroom.runs.schedule import Step
from stillroom.runs.store import Store

CUDA = torch.device("cuda", 0)


class Enough(Exception):
    """The steps that were asked for are done."""


class Waits(TorchDispatchMode):
    """Records every operation that waits for the device: a copy to the CPU, or one from memory that is not pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = [leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
        outputs = [leaf.device.type for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        asynchronous = (kwargs or {}).get("non_blocking") or any(argument is True for argument in args)
        if ("cuda" in devices and "cpu" in outputs) or (
            "cpu" in devices and "cuda" in outputs and not ("copy" in str(func) and asynchronous)
        ):
            here = [
                frame
                for frame in traceback.extract_stack()
                if "stillroom" in frame.filename or "optim" in frame.filename
            ]
            self.found.append(f"{func} in {here[-1].filename}:{here[-1].lineno}" if here else str(func))
        return result


def small(name: str, **changes: Any) -> DistillConfig:
    """A preset with small nets and batches, whose alignment needs no widening."""
    nets = {"teacher": ("random:cifar/resnet20",), "student": ("cifar/resnet20",)}
    config = PRESETS[name](**nets, data=Path("d"), out=Path("o"))
    output = config.teacher.output
    settings = {
        "teacher": replace(config.teacher, size=(16,), output=("feature",) if output == ("logits",) else output),
        "student": replace(config.student, size=(16,)),
        "monitor": Monitor(held_out=0.0),
        "batch_size": 8,
        "epochs": 100,
        "log_every": 10_000,
        "save_every": 10_000,
        "ema": 0.9,
        "device": "cuda",
    }
    return replace(config, **(settings | changes))


def batches(config: DistillConfig, num_views: int, count: int, each: Callable[[int], None]) -> Iterator[Batch]:
    """Batches of random pixels, then `Enough`; `each` is called before every one of them."""
    for step in range(count):
        each(step)
        views = tuple(torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8) for _ in range(num_views))
        yield Batch(views, torch.arange(8))
    raise Enough


def run_steps(
    config: DistillConfig,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    each: Callable[[int], None],
    *modes: AbstractContextManager[Any],
    device: torch.device = CUDA,
) -> None:
    """Run the real loop of `train` for some steps, on a device that may only be claimed by the modes."""
    files = from_paths([Path(f"d/{i}.png") for i in range(64)])
    images = RunImages(all=files, train=files, held_out=None)
    teachers = build_teachers(config.teacher.nets())
    students = build_students(config, Run(device=torch.device("cpu")), images, teachers)
    widths = [student.backbone.spec.dim for student in students]
    targets = [build_alignment(config.alignment, teachers[0].dim, width) for width in widths]
    cache = None
    if config.cache.views:
        cache = CachedTeacher(stores=(Rows(teachers[0].dim),), aligned=False)
    supervision = Supervision(
        teacher=teachers[0], weight=1.0, targets=tuple(targets), inputs=AlignmentInputs(), cache=cache
    )
    directory = RunDirectory(folder, Run(device=device))
    setup = RunSetup(run=Run(device=device), images=images, teachers=teachers, students=students)
    monkeypatch.setattr(
        train, "build_loader", lambda dataset, *_: batches(config, len(dataset.view._renderings), count, each)
    )
    with ExitStack() as entered, pytest.raises(Enough):
        for mode in modes:
            entered.enter_context(mode)
        for net in (*teachers, *students, *targets):
            net.to(device)
        train.train(config, setup, [supervision], directory, None, saved=None)


class Rows(Store):
    """A store that holds ones."""

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def read(self, rows: Tensor) -> Tensor:
        return torch.ones(len(rows), self._dim)


def give_gradients(loss: Tensor) -> None:
    """Set the gradient of every parameter that a loss depends on."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        nodes += [following for following, _ in node.next_functions]


def clone(tensor: Any, memo: dict[int, Any]) -> Any:
    """The copy of a tensor without values."""
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
    return memo[id(tensor)]


@pytest.fixture
def claimed_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors on `cuda` that have shapes and devices but no values, on a machine that may have no GPU.

    Autograd has no queue for a device that is not there: the backward pass is run on `meta`, see below.
    """
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(train, "prefetch", lambda loader, _: loader)  # it needs CUDA's streams
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(Tensor, "backward", give_gradients)
    monkeypatch.setattr(FakeTensor, "__deepcopy__", clone, raising=False)  # torch's copies the mode with each tensor
    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl("_fused_sgd_", lambda *_, **__: None)  # torch has one of AdamW's only
    yield FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
    library._destroy()


STRUCTURES = {
    repr(
        replace(small(name), lr=0.0, loss_weight=0.0, weight_decay=0.0, method="", schedule=Step(), view=KdepView())
    ): name
    for name in reversed(PRESETS)
}
"""Presets by what their step consists of: those that differ in numbers only are run once."""
VARIANTS = {
    **{name: small(name) for name in STRUCTURES.values()},
    "kdep in bf16": small("kdep", amp="bf16"),
    "kdep with a cache": small("kdep", cache=Cache(views=1)),
    "simreg in bf16 from a fixed view": small("simreg", amp="bf16", teacher_view=FixedView()),
    "adamw": small("simreg", optimizer=AdamW()),
    "lars": small("simreg", optimizer=Lars()),
    "dense": small("simreg", dense=Dense(weight=1.0)),
    "two students": small("kdep", student=Students(name=("cifar/resnet20", "cifar/resnet32"), size=(16,))),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_whole_step_stays_on_the_gpu_and_never_waits_for_it(
    name: str, claimed_gpu: FakeTensorMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher, alignment, loss, backward, optimiser and moving average, by the trainer's own loop."""
    waits, steps = Waits(), []

    def begin(step: int) -> None:
        steps.append(step)
        waits.found.clear() if step == 1 else None  # the first step makes the optimiser's state

    run_steps(VARIANTS[name], tmp_path, monkeypatch, 2, begin, claimed_gpu, waits)
    assert steps == [0, 1]
    assert waits.found == []


@pytest.mark.parametrize("name", ["kdep", "simreg", "conv1x1", "adamw", "lars", "dense", "two students"])
def test_the_whole_step_with_its_backward_pass_reads_no_value_of_a_tensor(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On `meta` there are no values: a loop that read one, or copied one to the CPU, would stop."""
    monkeypatch.setattr(train, "autocast", lambda *_: nullcontext())  # there is none on `meta`
    steps: list[int] = []
    run_steps(VARIANTS[name], tmp_path, monkeypatch, 2, steps.append, device=torch.device("meta"))
    assert steps == [0, 1]


def test_a_step_that_reads_its_loss_is_found(claimed_gpu: FakeTensorMode) -> None:
    """What the test above would say of a loop that waits."""
    with claimed_gpu, Waits() as waits:
        torch.ones(3, device=CUDA).cpu()
        torch.ones(3).to(CUDA)
        torch.ones(3).to(CUDA, non_blocking=True)
    assert len(waits.found) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["kdep", "simreg"])
def test_on_a_gpu_no_step_waits(name: str, amp: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if step >= 2 else "default")

    monkeypatch.setattr(torch, "randint", pinned(torch.randint))
    try:
        run_steps(small(name, amp=amp), tmp_path, monkeypatch, 6, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pinned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function, whose results on the CPU are in pinned memory."""
    return lambda *arguments, **settings: made if (made := make(*arguments, **settings)).is_cuda else made.pin_memory()
