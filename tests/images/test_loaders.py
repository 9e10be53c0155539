"""Batches: in what order and view images are seen, by any number of processes."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from stillroom.backbone import InputSpec
from stillroom.images import (
    BrokenImageError,
    EvaluationView,
    ImageDataset,
    Source,
    loaders,
    read_labelled,
    read_unlabelled,
)
from stillroom.images.loaders import Batch, EvaluationBatches, TrainingBatches, build_loader, collate
from stillroom.images.picture import Picture
from stillroom.images.prefetch import prefetch
from stillroom.runs import Run
from stillroom.runs.store import Store

CPU = torch.device("cpu")


def put(file: Path, size: tuple[int, int] = (4, 4), colour: str = "red") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)
    return file


# --- views


def noisy_view(picture: Picture, generator: torch.Generator) -> Tensor:
    """A view that draws from its generator."""
    pixels = torch.from_numpy(picture.pixels()).permute(2, 0, 1)
    return pixels[:, :2, :2] + torch.randint(0, 100, (3, 2, 2), dtype=torch.uint8, generator=generator)


@pytest.fixture
def six(tmp_path: Path) -> Source:
    for i in range(6):
        put(tmp_path / "six" / f"{i}.png", colour=f"rgb({i}, {i}, {i})")
    return read_unlabelled(tmp_path / "six")


def test_a_view_is_a_function_of_seed_epoch_and_index_alone(six: Source) -> None:
    keys = [(epoch, index) for epoch in range(3) for index in range(6)]
    dataset = ImageDataset(six, noisy_view, seed=1)
    first = {key: dataset[key][1] for key in keys}
    torch.manual_seed(99)
    random.shuffle(keys)
    again = ImageDataset(six, noisy_view, seed=1)
    assert all(torch.equal(again[key][1], first[key]) for key in keys)
    other = ImageDataset(six, noisy_view, seed=2)
    views = [tuple((dataset[0, i][1] - i).flatten().tolist()) for i in range(6)]
    views += [tuple((dataset[1, i][1] - i).flatten().tolist()) for i in range(6)]
    views += [tuple((other[0, i][1] - i).flatten().tolist()) for i in range(6)]
    assert len(set(views)) == 18  # no two draws are alike


def test_a_view_leaves_the_global_generators_alone(six: Source) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    before = np.random.get_state()[1].tolist()  # not Python's own: beartype draws from it when it checks a tuple
    dataset = ImageDataset(six, noisy_view)
    for _ in build_loader(dataset, EvaluationBatches(6, 2, Run(device=CPU)), num_workers=0):
        pass
    assert torch.equal(torch.rand(4), expected)
    assert np.random.get_state()[1].tolist() == before


def test_workers_change_nothing(six: Source) -> None:
    dataset = ImageDataset(six, noisy_view, seed=3)
    batches = TrainingBatches(6, 2, epochs=1, seed=0, run=Run(device=CPU))
    alone, helped = (list(build_loader(dataset, batches, num_workers=n)) for n in (0, 2))
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.indices, two.indices)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_run_with_its_name_and_nothing_of_a_workers_words(six: Source, workers: int) -> None:
    six.paths[2].write_bytes(b"")
    loader = build_loader(ImageDataset(six, noisy_view), EvaluationBatches(6, 6, Run(device=CPU)), workers)
    with pytest.raises(BrokenImageError, match=r"^\S*2\.png cannot be read as an image: [^\n]*$"):
        list(loader)


def test_skipped_images_are_named_and_the_rest_keep_their_index(six: Source) -> None:
    six.paths[2].write_bytes(b"")
    dataset = ImageDataset(six, noisy_view, on_broken="skip")
    assert len(dataset) == 6
    (batch,) = build_loader(dataset, EvaluationBatches(6, 6, Run(device=CPU)), num_workers=0)
    assert batch.indices.tolist() == [0, 1, 3, 4, 5]
    assert batch.images.shape == (5, 3, 2, 2)
    assert len(batch.broken) == 1 and "2.png cannot be read" in batch.broken[0]


def test_a_batch_of_broken_images_only_is_empty() -> None:
    batch = collate([(4, "x cannot be read"), (5, "y cannot be read")])
    assert (len(batch), batch.broken) == (0, ["x cannot be read", "y cannot be read"])
    assert isinstance(batch, Batch) and batch.indices.dtype == torch.int64


# --- order


sizes = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 3)).filter(lambda t: t[1] <= t[0])


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, seed=st.integers(0, 2**31))
def test_each_epoch_is_a_permutation_without_its_last_incomplete_batch(sizes: tuple[int, int, int], seed: int) -> None:
    num_images, batch_size, epochs = sizes
    steps = list(TrainingBatches(num_images, batch_size, epochs, seed, Run(device=CPU)))
    per_epoch = num_images // batch_size
    assert len(steps) == per_epoch * epochs
    for epoch in range(epochs):
        keys = [key for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for key in step]
        assert {e for e, _ in keys} == {epoch}
        indices = [index for _, index in keys]
        assert len(set(indices)) == len(indices) == per_epoch * batch_size
        assert set(indices) <= set(range(num_images))


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, world_size=st.integers(1, 5), seed=st.integers(0, 99))
def test_processes_together_see_the_batches_of_one(sizes: tuple[int, int, int], world_size: int, seed: int) -> None:
    num_images, share, epochs = sizes
    num_images *= world_size
    batch_size = share * world_size
    one = TrainingBatches(num_images, batch_size, epochs, seed, Run(device=CPU))
    parts = [
        TrainingBatches(num_images, batch_size, epochs, seed, Run(device=CPU, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert [len(part) for part in parts] == [len(one)] * world_size
    for whole, *pieces in zip(one, *parts, strict=True):
        assert {len(piece) for piece in pieces} == {share}
        assert [key for piece in pieces for key in piece] == whole


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, data=st.data())
def test_start_goes_on_where_a_run_stopped(sizes: tuple[int, int, int], data: st.DataObject) -> None:
    num_images, batch_size, epochs = sizes
    whole = list(TrainingBatches(num_images, batch_size, epochs, 3, Run(device=CPU)))
    start = data.draw(st.integers(0, len(whole)))
    rest = TrainingBatches(num_images, batch_size, epochs, 3, Run(device=CPU), start=start)
    assert len(rest) == len(whole) - start
    assert list(rest) == whole[start:]


def test_the_order_changes_with_epoch_and_seed() -> None:
    def order(seed: int) -> list[list[int]]:
        steps = TrainingBatches(20, 20, 2, seed, Run(device=CPU))
        return [[index for _, index in step] for step in steps]

    assert order(0) == order(0)
    orders = [tuple(epoch) for seed in (0, 1) for epoch in order(seed)]
    assert len(set(orders)) == 4


def test_the_order_of_older_runs_is_numpys_permutation_resumable_at_any_step() -> None:
    whole = list(TrainingBatches(10, 3, 2, 5, Run(device=CPU), order=1))
    for epoch in (0, 1):
        images = [index for step in whole[3 * epoch : 3 * epoch + 3] for _, index in step]
        assert images == np.random.default_rng([5, epoch]).permutation(10)[:9].tolist()
    assert list(TrainingBatches(10, 3, 2, 5, Run(device=CPU), start=4, order=1)) == whole[4:]
    assert list(TrainingBatches(10, 3, 2, 5, Run(device=CPU))) != whole


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="batch size 9 is larger than the data: 8 images"):
        TrainingBatches(8, 9, 1, 0, Run(device=CPU))


def test_a_batch_that_does_not_divide_over_the_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="batch size 4 does not divide over 3 processes"):
        TrainingBatches(8, 4, 1, 0, Run(device=CPU, rank=1, world_size=3))


@settings(max_examples=60, deadline=None)
@given(num_images=st.integers(0, 50), batch_size=st.integers(1, 20), world_size=st.integers(1, 3))
def test_evaluation_covers_everything_once_in_the_same_batches_for_any_number_of_processes(
    num_images: int, batch_size: int, world_size: int
) -> None:
    one = [tuple(batch) for batch in EvaluationBatches(num_images, batch_size, Run(device=CPU))]
    assert [key for batch in one for key in batch] == [(0, i) for i in range(num_images)]
    parts = [
        EvaluationBatches(num_images, batch_size, Run(device=CPU, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert Counter(tuple(batch) for part in parts for batch in part) == Counter(one)
    assert sum(len(part) for part in parts) == len(one)


def test_a_loader_gives_batches(labelled: Callable[..., Path]) -> None:
    files = read_labelled(labelled("train", per_class=3))
    dataset = ImageDataset(files, EvaluationView(InputSpec(size=16, crop_fraction=1.0)))
    batches = list(build_loader(dataset, EvaluationBatches(9, 4, Run(device=CPU)), num_workers=0))
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(9))
    assert batches[0].images.shape == (4, 3, 16, 16)


@given(n=st.integers(1, 200), batch=st.integers(1, 9), together=st.integers(1, 7), world_size=st.integers(1, 4))
def test_batches_that_belong_together_go_to_one_process(n: int, batch: int, together: int, world_size: int) -> None:
    runs = [Run(device=torch.device("cpu"), rank=rank, world_size=world_size) for rank in range(world_size)]
    owners = {}
    for run in runs:
        for keys in EvaluationBatches(n, batch, run, together=together):
            owners |= {index: run.rank for _, index in keys}
    assert sorted(owners) == list(range(n))
    assert all(owners[i] == owners[i // (batch * together) * batch * together] for i in range(n))


def test_auto_starts_no_more_workers_than_there_are_batches(six: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "choose_workers", lambda _: 40)
    dataset = ImageDataset(six, EvaluationView(InputSpec(size=8)))
    assert build_loader(dataset, [[(0, 1)], [(0, 2)]], "auto").num_workers == 2


def test_batches_for_the_cpu_are_yielded_as_they_are() -> None:
    batches = [Batch((torch.zeros(1, 3, 2, 2, dtype=torch.uint8),), torch.tensor([i])) for i in range(3)]
    assert all(given is found for given, found in zip(batches, prefetch(batches, torch.device("cpu")), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_for_a_gpu_are_on_it_in_their_order() -> None:
    made = [torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8) for _ in range(5)]
    batches = [Batch((pixels.clone(),), torch.arange(4)).pin_memory() for pixels in made]
    for pixels, batch in zip(made, prefetch(batches, torch.device("cuda")), strict=True):
        assert batch.images.is_cuda and torch.equal(batch.images.cpu(), pixels)


def test_two_processes_that_share_a_store_write_no_file_of_the_other(
    tmp_path: Path, in_two_processes: Callable[..., list]
) -> None:
    def fill() -> list[int]:
        run = Run.start("cpu")
        store = Store.open(tmp_path / "cache", {}, 200, 3, run, "float32", batch_size=8)
        together = store.chunk_rows // 8
        written = []
        with store:
            for batch in EvaluationBatches(200, 8, run, mask=store.missing, together=together):
                rows = torch.tensor([index for _, index in batch])
                store.write(rows, rows[:, None].expand(-1, 3).float())
                written += sorted(set((rows // store.chunk_rows).tolist()))
        run.wait()
        assert torch.equal(store.values[:, 0], torch.arange(200).float())
        assert torch.equal(store.read(torch.tensor([199, 0, 64]))[:, 0], torch.tensor([199.0, 0.0, 64.0]))
        run.close()
        return written

    one, two = in_two_processes(fill)
    assert sorted([*one, *two]) == list(range(25)) and abs(len(one) - len(two)) == 1


def test_a_worker_whose_parent_ended_while_it_started_ends_too(six: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    start: Any = build_loader(ImageDataset(six, noisy_view), [[(0, 0)]], 1).worker_init_fn
    codes = []
    for parent in (os.getpid(), 1):  # 1: what it is given to when its parent has ended
        monkeypatch.setattr(os, "getppid", lambda parent=parent: parent)
        child = os.fork()
        if child == 0:
            start(0)
            time.sleep(0.3)
            os._exit(7)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes == [7, 0]


def test_a_worker_heeds_the_sigterm_of_its_parent_alone(six: Source) -> None:
    start: Any = build_loader(ImageDataset(six, noisy_view), [[(0, 0)]], 1).worker_init_fn
    worker = os.fork()
    if worker == 0:
        start(0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        Path(six.root / "alive").touch()
        time.sleep(60)
    while not (six.root / "alive").exists():
        time.sleep(0.01)
    os.kill(worker, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0
