"""Batches of images: samplers for training and evaluation on any number of processes, and the loader."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from stillroom.backbone.flags import OnBroken, Workers
from stillroom.backbone.seeds import mix_seed
from stillroom.images.colour import Colour, apply_colours
from stillroom.images.decode import BrokenImageError
from stillroom.images.order import KeyedOrder
from stillroom.images.picture import Picture, open_picture
from stillroom.images.source import Source, SourceError
from stillroom.runs.hardware import choose_workers
from stillroom.runs.run import Run

LOOK_EVERY = 2.0
"""Seconds between two looks of a worker whether its parent has ended."""


@dataclass(frozen=True)
class Rendered:
    """The views of one image.

    Args:
        pixels: of each view.
        colours: for each view, the `Colour` that is still to be applied to it, packed; None: it has its colours.
    """

    pixels: tuple[UInt8[Tensor, "3 _ _"], ...]
    colours: tuple[Float[Tensor, " 13"] | None, ...]


View = Callable[[Picture, Generator], Tensor | Rendered]
"""(image, random generator of its own) -> uint8 (3, h, w), or several of them."""


@runtime_checkable
class Keys(Sized, Iterable[list[tuple[int, int]]], Protocol):
    """The (epoch, index) keys of each batch; a sampler, or a list."""


@dataclass
class Batch:
    """Decoded images of one step: each view's pixels, their indices in the file list, and the broken images.

    `colours` are those that are still to be applied to each view, see `on`.
    """

    views: tuple[UInt8[Tensor, "b 3 _ _"], ...]
    indices: Int[Tensor, " b"]
    broken: list[str] = field(default_factory=list)
    broken_indices: tuple[int, ...] = ()
    colours: tuple[Float[Tensor, "b 13"] | None, ...] = ()
    error: SourceError | None = None
    """Why no image of the source can be read any more."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def images(self) -> UInt8[Tensor, "b 3 h w"]:
        """The pixels of the first view, as they were loaded."""
        return self.views[0]

    def on(self, device: torch.device) -> tuple[UInt8[Tensor, "b 3 _ _"], ...]:
        """Each view on a device, with its colours."""
        views = [view.to(device, non_blocking=True) for view in self.views]
        colours = self.colours or [None] * len(views)
        return tuple(
            view if rows is None else apply_colours(view, [Colour.unpack(row) for row in rows.tolist()])
            for view, rows in zip(views, colours, strict=True)
        )

    def pin_memory(self) -> "Batch":
        """Pin the pixels; called by the loader if there is a GPU."""
        self.views = tuple(view.pin_memory() for view in self.views)
        return self


@dataclass(eq=False)
class ImageDataset(Dataset[Any]):
    """Views of images; each is a pure function of the seed and a sample's key (epoch, index).

    Args:
        files: images to read, of any source.
        view: see `View`.
        seed: of the views.
        on_broken: see `OnBroken`.
        cycle: the views repeat after this many epochs; 0: never.
        as_stored: images are not turned as their EXIF tags say.
    """

    files: Source
    view: View
    _: KW_ONLY
    seed: int = 0
    on_broken: OnBroken = "refuse"
    cycle: int = 0
    as_stored: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> "tuple[int, Sample]":
        epoch, index = key
        if self.cycle:
            epoch %= self.cycle
        generator = Generator().manual_seed(mix_seed(self.seed, epoch, index))
        try:
            return index, self.view(self._read(index), generator)
        except BrokenImageError as error:  # raised in the main process, without the worker's traceback in its message
            return index, str(error)
        except SourceError as error:
            return index, error

    def _read(self, index: int) -> Picture:
        where = self.files.where(index)
        try:
            data = self.files.read(index)
        except OSError as error:
            raise BrokenImageError(f"{where} cannot be read as an image: {error}") from error
        return open_picture(data, where, as_stored=self.as_stored)


Sample = Tensor | Rendered | str | SourceError
"""The views of an image; or why it is broken; or why none of its source can be read any more."""


def collate(samples: list[tuple[int, Sample]]) -> Batch:
    """Stack the readable samples, view by view; name the broken ones."""
    good = [(index, views) for index, views in samples if not isinstance(views, str | SourceError)]
    broken = [(index, why) for index, why in samples if isinstance(why, str)]
    rendered = [Rendered((views,), (None,)) if isinstance(views, Tensor) else views for _, views in good]
    nothing = torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    views = zip(*(one.pixels for one in rendered), strict=True)
    return Batch(  # default_collate stacks into the memory that a worker shares with the main process
        tuple(default_collate(list(view)) for view in views) or (nothing,),
        torch.tensor([index for index, _ in good], dtype=torch.long),
        [why for _, why in broken],
        tuple(index for index, _ in broken),
        tuple(
            None if rows[0] is None else torch.stack(rows)
            for rows in zip(*(one.colours for one in rendered), strict=True)
        ),
        next((one for _, one in samples if isinstance(one, SourceError)), None),
    )


@contextmanager
def unwrap_worker_errors() -> Iterator[None]:
    """Raise BrokenImageErrors from workers of a framework's loop without the traceback that DataLoader adds to them."""
    try:
        yield
    except BrokenImageError as error:
        raise BrokenImageError(str(error).strip().rpartition(f"{BrokenImageError.__name__}: ")[2]) from error


@dataclass(frozen=True)
class TrainingBatches:
    """Sampler of a training run: the keys of this process for every step, over all epochs.

    Each epoch is a permutation given by (seed, epoch), of which each step computes its own part. Each global batch is
    split into equal parts, one per process, so that any number of processes sees the same images in the same step. The
    last, incomplete batch of an epoch is dropped.

    Args:
        num_images: n.
        batch_size: global, images per step over all processes.
        epochs: passes over the data.
        seed: of the order.
        run: this process.
        start: first step to yield, for resuming.
        order: version of the permutation: 2: `KeyedOrder`; 1: NumPy's, an array of all images, as in runs of
            stillroom-images 0.1 and before.

    Raises:
        ValueError: batch larger than the data, or not divisible by the number of processes.
    """

    num_images: int
    batch_size: int
    epochs: int
    seed: int
    run: Run
    start: int = 0
    order: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.batch_size > self.num_images:
            raise ValueError(f"batch size {self.batch_size} is larger than the data: {self.num_images} images")
        if self.batch_size % self.run.world_size:
            raise ValueError(f"batch size {self.batch_size} does not divide over {self.run.world_size} processes")

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.run.world_size
        for epoch in range(self.start // self.steps_per_epoch, self.epochs):
            order = self._epoch(epoch)
            begin = self.start % self.steps_per_epoch if epoch == self.start // self.steps_per_epoch else 0
            for step in range(begin, self.steps_per_epoch):
                first = step * self.batch_size + self.run.rank * share
                yield [(epoch, index) for index in order(first, share).tolist()]

    def _epoch(self, epoch: int) -> Callable[[int, int], np.ndarray]:
        """The images at some places of an epoch's order, by the first place and the number of places."""
        if self.order == 2:
            return KeyedOrder(self.num_images, (self.seed, epoch)).take
        images = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
        return lambda first, count: images[first : first + count]


class EvaluationBatches:
    """Sampler of one pass: every image once, in order, in fixed batches; the number of processes changes no batch.

    Args:
        num_images, batch_size: of the whole pass.
        run: this process.
        epoch: of the keys; seeds a random view.
        mask: (num_images,) the images that are needed. A batch without any is skipped, and every other batch stays
            complete, because results of batch sizes 1 and 64 differ in the last digits. None: all.
        together: number of neighbouring batches that go to the same process, such as those of one chunk of a store.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        run: Run,
        *,
        epoch: int = 0,
        mask: Bool[Tensor, " n"] | None = None,
        together: int = 1,
    ) -> None:
        batches = [range(s, min(s + batch_size, num_images)) for s in range(0, num_images, batch_size)]
        batches = [b for i, b in enumerate(batches) if i // together % run.world_size == run.rank]
        self.epoch = epoch
        self.batches = [b for b in batches if mask is None or bool(mask[b.start : b.stop].any())]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, index) for index in batch] for batch in self.batches)


class ImageLoader(DataLoader):
    """A loader of `Batch`es of an `ImageDataset`.

    Raises `BrokenImageError` if broken images are refused, and `SourceError` if the images' source is gone.
    """

    dataset: ImageDataset

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if batch.error is not None:
                raise SourceError(str(batch.error))
            if batch.broken and self.dataset.on_broken == "refuse":
                raise BrokenImageError(batch.broken[0])
            yield batch


def begin_worker(parent: int, worker: int) -> None:
    """What each worker of a loader begins with: it ends with its parent, and by SIGTERM of nobody else.

    A scheduler signals the whole process group, and the run needs its workers until its state is saved. torch's own
    watch takes the process above for the parent of a worker whose parent ended while it started.

    Args:
        parent: the process that started the worker.
        worker: its number, which a DataLoader passes.
    """
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, LOOK_EVERY)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


def build_loader(dataset: ImageDataset, batches: Keys, num_workers: Workers) -> ImageLoader:
    """Build a loader of `Batch`es from the (epoch, index) keys of each step; the global random state is not used.

    Args:
        dataset: the images.
        batches: keys of each step.
        num_workers: processes that decode; `auto` starts no more of them than there are batches.
    """
    return ImageLoader(
        dataset,
        batch_sampler=batches,
        num_workers=min(choose_workers("auto"), len(batches)) if num_workers == "auto" else num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(begin_worker, os.getpid()),
        generator=torch.Generator(),
    )
