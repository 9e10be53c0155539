"""Images in batches: which of them a process sees in which step, and how they are read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stillroom.backbone.flags import OnBroken
from stillroom.backbone.image_files import ImageFiles
from stillroom.backbone.images import BrokenImageError, load_image
from stillroom.backbone.run import Run, mix_seed

View = Callable[[Image.Image], Tensor | tuple[Tensor, ...]]
"""PIL image -> uint8 (3, h, w), or several of them."""


@dataclass
class Batch:
    """Decoded images of one step: each view's pixels, their place in the file list, and what could not be read."""

    views: tuple[UInt8[Tensor, "b 3 _ _"], ...]
    indices: Int[Tensor, " b"]
    broken: list[str] = field(default_factory=list)
    broken_indices: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def images(self) -> UInt8[Tensor, "b 3 h w"]:
        """The pixels of the first view."""
        return self.views[0]

    def pin_memory(self) -> "Batch":
        """What the loader calls where a GPU will copy from it."""
        self.views = tuple(view.pin_memory() for view in self.views)
        return self


class ImageDataset(Dataset[Any]):
    """Image files seen through a view, which is a pure function of the seed and a sample's key (epoch, index).

    Args:
        files: what to read.
        view: see `View`; it may draw from torch's random generator, which is seeded per sample.
        seed: of the views.
        on_broken: see `OnBroken`.
        cycle: after this many epochs the views come again; 0: never.
    """

    def __init__(
        self, files: ImageFiles, view: View, *, seed: int = 0, on_broken: OnBroken = "refuse", cycle: int = 0
    ) -> None:
        self.files = files
        self.view = view
        self.seed = seed
        self.on_broken = on_broken
        self.cycle = cycle

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Tensor | tuple[Tensor, ...] | str]:
        epoch, index = key
        if self.cycle:
            epoch %= self.cycle
        try:
            image = load_image(self.files.paths[index])
        except BrokenImageError as error:  # raised in the main process, without a worker's words around it
            return index, str(error)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(self.seed, epoch, index))
            return index, self.view(image)


def collate(samples: list[tuple[int, Tensor | tuple[Tensor, ...] | str]]) -> Batch:
    """Stack the readable samples, view by view, and name the others."""
    good = [(index, views) for index, views in samples if not isinstance(views, str)]
    broken = [(index, why) for index, why in samples if isinstance(why, str)]
    views = [(views,) if isinstance(views, Tensor) else views for _, views in good]
    nothing = torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    return Batch(
        tuple(torch.stack(view) for view in zip(*views, strict=True)) if good else (nothing,),
        torch.tensor([index for index, _ in good], dtype=torch.long),
        [why for _, why in broken],
        tuple(index for index, _ in broken),
    )


@contextmanager
def unwrap_worker_errors() -> Iterator[None]:
    """Of an image that breaks in a worker process of somebody else's loop, the sentence alone.

    Raises:
        BrokenImageError: without the words that torch's DataLoader puts around it.
    """
    try:
        yield
    except BrokenImageError as error:
        raise BrokenImageError(str(error).strip().rpartition(f"{BrokenImageError.__name__}: ")[2]) from error


class TrainingBatches:
    """The keys of every step of a run, over all epochs, for one process of many.

    Each epoch is a permutation of (seed, epoch); each global batch is cut into equal parts, one per process, so that
    any number of processes sees the same images in the same step. The last, incomplete batch of an epoch is left out.

    Args:
        num_images: n.
        batch_size: global, images per step over all processes.
        epochs: passes over the data.
        seed: of the order.
        run: this process.
        start: first step to give, for resuming.

    Raises:
        ValueError: batch larger than the data, or not divisible by the number of processes.
    """

    def __init__(self, num_images: int, batch_size: int, epochs: int, seed: int, run: Run, start: int = 0) -> None:
        if batch_size > num_images:
            raise ValueError(f"batch size {batch_size} is larger than the data: {num_images} images")
        if batch_size % run.world_size:
            raise ValueError(f"batch size {batch_size} does not divide over {run.world_size} processes")
        self.num_images, self.batch_size, self.epochs, self.seed, self.start = (
            num_images,
            batch_size,
            epochs,
            seed,
            start,
        )
        self.share = batch_size // run.world_size
        self.first = run.rank * self.share
        self.steps_per_epoch = num_images // batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.start // self.steps_per_epoch, self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
            begin = self.start % self.steps_per_epoch if epoch == self.start // self.steps_per_epoch else 0
            for step in range(begin, self.steps_per_epoch):
                first = step * self.batch_size + self.first
                yield [(epoch, int(index)) for index in order[first : first + self.share]]


class EvaluationBatches:
    """Every image once, in order, in fixed batches dealt out to the processes: their number changes nothing.

    Args:
        num_images, batch_size: of the whole pass.
        run: this process.
        epoch: of the keys; what a view that draws is seeded with.
        wanted: (num_images,) which images are asked for; a batch goes whole, for batch 1 and batch 64 differ in the
            last digits, or where it holds none of them not at all. None: all.
    """

    def __init__(
        self, num_images: int, batch_size: int, run: Run, *, epoch: int = 0, wanted: Bool[Tensor, " n"] | None = None
    ) -> None:
        starts = range(0, num_images, batch_size)
        batches = [range(s, min(s + batch_size, num_images)) for s in starts][run.rank :: run.world_size]
        self.epoch = epoch
        self.batches = [b for b in batches if wanted is None or bool(wanted[b.start : b.stop].any())]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, index) for index in batch] for batch in self.batches)


@runtime_checkable
class Batches(Protocol):
    """Lists of (epoch, index) keys, one list per step of this process."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[tuple[int, int]]]: ...


class ImageLoader(DataLoader):
    """A loader of `Batch`es of an `ImageDataset`, which raises `BrokenImageError` where broken images are refused."""

    dataset: ImageDataset

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if batch.broken and self.dataset.on_broken == "refuse":
                raise BrokenImageError(batch.broken[0])
            yield batch


def build_loader(dataset: ImageDataset, batches: Batches, num_workers: int) -> ImageLoader:
    """A loader of `Batch`es. It takes nothing from the global random generator."""
    return ImageLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # an iterable with a length is all it needs
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
