"""The progress bar counts, times, and names what was skipped."""

import time
from collections.abc import Iterator

import pytest
import torch

from stillroom.runs import Run, progress
from stillroom.runs.progress import Progress


def slow(batches: list[list[int]], seconds: float) -> Iterator[list[int]]:
    for batch in batches:
        time.sleep(seconds)
        yield batch


def test_every_batch_passes_unchanged(run: Run) -> None:
    batches = [[1, 2, 3], [4]]
    assert list(Progress(4, run, "test").over(batches)) == batches


def test_a_lap_gives_the_rate_and_the_share_of_waiting(run: Run) -> None:
    progress = Progress(8, run, "test")
    for _ in progress.over(slow([[0] * 4] * 2, 0.05)):
        time.sleep(0.05)
    lap = progress.lap()
    assert 0.3 < lap["data_wait_share"] < 0.7
    assert lap["images_per_second"] == pytest.approx(8 / progress.seconds, rel=0.2)
    assert progress.lap()["images_per_second"] == 0  # each lap begins at zero
    assert 0.2 <= progress.seconds < 2


def test_images_of_all_processes_are_counted() -> None:
    run = Run(device=torch.device("cpu"), rank=1, world_size=4)
    progress = Progress(8, run, "test")
    started = time.perf_counter()
    for _ in progress.over([[0, 0]]):
        time.sleep(0.05)
    images = progress.lap()["images_per_second"] * (time.perf_counter() - started)
    assert images == pytest.approx(8, rel=0.1)


def test_a_broken_image_is_named_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(3, run, "test")
    progress.skip(["a.png cannot be read"])
    progress.skip(["a.png cannot be read", "b.png cannot be read"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert [line[line.index("skipped") :] for line in lines] == [
        "skipped: a.png cannot be read",
        "skipped: b.png cannot be read",
    ]
    assert len(progress.broken) == 2


def test_only_the_main_process_shows_a_bar(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    other = Run(device=torch.device("cpu"), rank=1, world_size=2)
    for process, shown in ((run, True), (other, False)):
        progress = Progress(2, process, "counting")
        progress.show(loss=0.5)
        list(progress.over([[1], [2]]))
        assert ("counting" in capsys.readouterr().err) is shown


def test_much_waiting_for_images_is_warned_of_once_and_not_while_the_workers_start(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SETTLED_SECONDS", 0.05)
    bar = Progress(8, run, "test")

    def lap(wait: float, work: float) -> str:
        for _ in bar.over(slow([[0]], wait), close=False):
            time.sleep(work)
        bar.lap()
        return capsys.readouterr().err

    assert "warning" not in lap(0.1, 0.0)  # the first lap, in which processes start
    assert "warning" not in lap(0.0, 0.04)  # too short to be judged
    said = lap(0.06, 0.02)
    assert "of the time goes into waiting for images: pass a larger --workers (auto takes the cores" in said
    assert "warning" not in lap(0.1, 0.0)
