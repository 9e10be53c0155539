"""The loader's batches against those of torchvision's ImageFolder and v1 transforms."""

import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from bench.config import Loader
from stillroom.backbone import InputSpec, Normalize
from stillroom.distill import KdepView, StrongView, WeakView
from stillroom.distill.slots import SameView
from stillroom.distill.views import Views
from stillroom.images import ImageDataset, Source, read_unlabelled
from stillroom.images.colour import draw_lighting
from stillroom.images.jpeg import decoder
from stillroom.images.loaders import TrainingBatches, build_loader
from stillroom.runs import Run

CPU = torch.device("cpu")
NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def figures(settings: Loader) -> dict[str, Any]:
    """For each view: images per second of both and their ratios, by the clock and by processor time, and of the parts.

    `colours` is the processor time that ours spends on colours, milliseconds an image, contained in the ratios.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) if settings.images is None else settings.images
        if settings.images is None:
            write_photographs(root / "all")
        measured = {name: compare(name, root, settings) for name in ("kdep", "simreg")}
    return {
        "decoder": decoder(),
        **measured,
        "speedup": measured["kdep"]["speedups"],
        "speedup_simreg": measured["simreg"]["speedups"],
    }


def compare(name: str, root: Path, settings: Loader) -> dict[str, Any]:
    """Interleaved passes of both loaders, and of ours without its colours."""
    reference = ImageFolder(str(root), transforms_of(name, settings))
    files = read_unlabelled(root)
    makers: dict[str, Callable[[], Iterable[Any]]] = {
        "reference": lambda: DataLoader(reference, settings.batch, shuffle=True, num_workers=1, drop_last=True),
        "ours": lambda: ours(name, files, settings, "here"),
        "ours_without_colours": lambda: ours(name, files, settings, "later"),
    }
    wall: dict[str, list[float]] = {key: [] for key in makers}
    processor: dict[str, list[float]] = {key: [] for key in makers}
    for _ in range(settings.repeats):
        for key, make in makers.items():
            seconds, spent = one_pass(make(), settings.batch)
            wall[key].append(seconds)
            processor[key].append(spent)
    rate = {key: 1 / statistics.median(values) for key, values in wall.items()}
    milliseconds = {key: 1e3 * statistics.median(values) for key, values in processor.items()}
    return {
        "images": len(files),
        "kilobytes": statistics.mean(path.stat().st_size for path in files.paths) / 1e3,
        "images_per_second": rate,
        "processor_milliseconds": milliseconds,
        "colours": milliseconds["ours"] - milliseconds["ours_without_colours"],
        "speedups": [a / b for a, b in zip(wall["reference"], wall["ours"], strict=True)],
        "speedups_in_processor_time": [a / b for a, b in zip(processor["reference"], processor["ours"], strict=True)],
    }


def one_pass(batches: Iterable[Any], batch_size: int) -> tuple[float, float]:
    """Seconds an image from the first batch to the last one, by the clock and of the worker's processor time."""
    count, marks = 0, []
    for count, _ in enumerate(batches):
        for worker in multiprocessing.active_children():  # none, once the last batches wait in the queue
            marks.append((count, time.perf_counter(), processor_seconds(worker.pid)))
    ended = time.perf_counter()
    (first, began, before), (last, _, after) = marks[0], marks[-1]
    assert first == 0, "the worker runs when its first batch arrives"
    return (ended - began) / (count * batch_size), (after - before) / (last * batch_size)


def processor_seconds(pid: int | None) -> float:
    """Processor seconds, user and system, of a running process; as Linux counts them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ours(name: str, files: Source, settings: Loader, colours: str) -> Iterable[list[Tensor]]:
    """Our batches, normalised in this process, as the nets do it."""
    spec = InputSpec(size=settings.size)
    normalize = Normalize(spec)
    match name:
        case "kdep":
            views = Views(KdepView(), SameView(), [settings.size], [spec], colours=colours)
        case "simreg":
            views = Views(StrongView(), WeakView(), [settings.size], [spec], colours=colours)
    batches = TrainingBatches(len(files), settings.batch, 1, 0, Run(device=CPU))
    for batch in build_loader(ImageDataset(files, views), batches, 1):
        yield [normalize(view) for view in batch.views]


def transforms_of(name: str, settings: Loader) -> Callable[[Image.Image], Any]:
    """The reference's transforms of Pillow images."""

    def crop(min_scale: float) -> list[Any]:
        return [
            transforms.RandomResizedCrop(settings.size, scale=(min_scale, 1.0)),
            transforms.RandomHorizontalFlip(),
        ]

    to_tensor = transforms.ToTensor()
    if name == "kdep":
        return transforms.Compose([*crop(0.08), transforms.ColorJitter(0.1, 0.1, 0.1), to_tensor, light, NORMALIZE])
    blur = pil_blur if settings.pil_blur else transforms.GaussianBlur(13, (0.1, 2.0))
    strong = transforms.Compose(
        [
            *crop(0.2),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([blur], 0.5),
            to_tensor,
            NORMALIZE,
        ]
    )
    weak = transforms.Compose([*crop(0.2), to_tensor, NORMALIZE])
    return lambda image: (strong(image), weak(image))


def light(image: Tensor) -> Tensor:
    """KDEP's lighting of a float image."""
    return image + torch.tensor(draw_lighting(0.05, torch.default_generator)).view(3, 1, 1) / 255


def pil_blur(image: Image.Image) -> Image.Image:
    """The blur of SimReg's code."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def write_photographs(folder: Path, count: int = 512) -> None:
    """Write JPEG files of about 86 kB: crops of 500 x 375 px from photographs of 640 x 427."""
    from sklearn.datasets import load_sample_images  # noqa: PLC0415  # not every benchmark needs it

    folder.mkdir()
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    generator = np.random.default_rng(0)
    for index in range(count):
        left, top = (int(generator.integers(0, margin)) for margin in (140, 52))
        buffer = BytesIO()
        photographs[index % 2].crop((left, top, left + 500, top + 375)).save(buffer, "JPEG", quality=95)
        (folder / f"{index:03d}.jpg").write_bytes(buffer.getvalue())
