"""Batches copied to a GPU while the step before them runs."""

from collections.abc import Iterable, Iterator

import torch

from stillroom.images.loaders import Batch


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches; for a CUDA GPU with their pixels on it, each copied on a stream of its own one batch ahead.

    Args:
        batches: in pinned memory, as `build_loader` gives them; from other memory a copy waits for the device.
        device: of the nets. Batches for other devices are yielded as they are.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            batch.views = tuple(view.to(device, non_blocking=True) for view in batch.views)
            copied = side.record_event()
        if ahead is not None:
            yield _ready(*ahead)
        ahead = batch, copied
    if ahead is not None:
        yield _ready(*ahead)


def _ready(batch: Batch, copied: "torch.cuda.Event") -> Batch:
    """Let the stream of the nets wait for a batch's copy, and keep its memory until that stream is done with it."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for view in batch.views:
        view.record_stream(stream)
    return batch
