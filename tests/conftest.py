"""Shared by all tests: shape checks at every call, a separate cache, and small folders of images."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before any library reads it: spinning threads make some tests 20 times slower

from jaxtyping import install_import_hook

install_import_hook("stillroom", "beartype.beartype")  # before anything of stillroom is imported

import socket  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.multiprocessing import start_processes  # noqa: E402

from stillroom.backbone import build_backbone, cli, save_checkpoint  # noqa: E402
from stillroom.runs import Run  # noqa: E402

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
TOOLS = Path(__file__).parents[1] / "tools"


def pytest_configure(config: pytest.Config) -> None:
    """One thread per test process: the machine may have only two cores; and autograd that forked processes can use.

    Autograd starts threads at its first backward if there are devices by then, such as the one that torch's ONNX
    exporter registers; a process that is forked later cannot go backward.
    """
    torch.set_num_threads(1)
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def separate_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests out of the user's cache."""
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def run() -> Run:
    """A single process on the CPU."""
    return Run(device=torch.device("cpu"))


@pytest.fixture
def in_two_processes(tmp_path: Path) -> Callable[[Callable[[], object]], list]:
    """Call a function in two processes connected as torchrun's are; returns their results by rank.

    They are forked, so that they do not import everything again.
    """

    def call(function: Callable[[], object]) -> list:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def process(rank: int) -> None:
            torch.set_num_threads(1)
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in world.items()})
            torch.save(function(), tmp_path / f"returned-{rank}.pt")

        start_processes(process, nprocs=2, start_method="fork")
        return [torch.load(tmp_path / f"returned-{rank}.pt", weights_only=True) for rank in (0, 1)]

    return call


def save_student(out: Path, name: str, size: int) -> Path:
    """Write a checkpoint like those of distill."""
    torch.manual_seed(3)
    backbone = build_backbone(name, feature="before")
    backbone.train()(torch.randn(4, 3, size, size))
    save_checkpoint(out, backbone, method="kdep", package="stillroom-distill")
    return out


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A checkpoint of ResNet-18."""
    return save_student(tmp_path / "student", "torchvision/resnet18", 64)


@pytest.fixture
def small_student(tmp_path: Path) -> Path:
    """A checkpoint of the CIFAR ResNet-20, for tests that work with any net."""
    return save_student(tmp_path / "small", "cifar/resnet20", 32)


@pytest.fixture
def images() -> Callable[[int], Tensor]:
    """`images(size)`: three normalised images, always the same."""

    def make(size: int) -> Tensor:
        return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(size))

    return make


@pytest.fixture
def checkpoint_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `stillroom-checkpoint` with these words; exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom-checkpoint", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as exited:
            code = int(exited.code or 0)
        return code, *capsys.readouterr()

    return run


def write_images(folder: Path, count: int, size: int = 40, seed: int = 0) -> Path:
    """Write smooth random images, `0000.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.png")
    return folder


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """96 images of 40 px in one folder: more than the 64 dimensions of a CIFAR ResNet."""
    return write_images(tmp_path / "unlabelled", 96)


@pytest.fixture
def labelled(tmp_path: Path) -> Callable[..., Path]:
    """Make an image folder: `labelled("train", per_class=12)`; each class has its colour, so it can be learned."""

    def make(
        name: str, per_class: int = 12, classes: tuple[str, ...] = ("blue", "green", "red"), seed: int = 0
    ) -> Path:
        generator = np.random.default_rng(seed)
        for label, class_name in enumerate(classes):
            folder = tmp_path / name / class_name
            folder.mkdir(parents=True)
            for index in range(per_class):
                pixels = generator.integers(0, 120, (36, 36, 3), dtype=np.uint8)
                pixels[..., (2 - label) % 3] += 110
                Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        return tmp_path / name

    return make


@pytest.fixture
def shared_data() -> Path:
    """The real data of the studies; it is not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data of shared/data is not on this machine")
    return SHARED_DATA
