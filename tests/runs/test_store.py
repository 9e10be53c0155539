"""Arrays kept on disk: keyed, resumable, never half a row."""

import errno
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stillroom.backbone.atomic import write_file
from stillroom.backbone.cache_folder import cache_directory, warn_once
from stillroom.runs import Run
from stillroom.runs import store as store_module
from stillroom.runs.store import CacheError, Store, cache_key, count_chunk_rows, optional_cache, store_bytes


@pytest.fixture(autouse=True)
def _nothing_was_said() -> None:
    """No test has warned before this one."""
    warn_once.cache_clear()


@pytest.fixture
def run() -> Run:
    return Run(device=torch.device("cpu"))


def write(store: Store, rows: torch.Tensor, values: torch.Tensor) -> None:
    """Fill rows and flush them, as a pass does that ends here."""
    with store:
        store.write(rows, values)


def test_what_is_written_is_read_again_by_a_later_process(tmp_path: Path, run: Run) -> None:
    values = torch.randn(4, 3)
    write(Store.open(tmp_path, {"teacher": "a"}, 10, 3, run), torch.tensor([7, 1, 0, 3]), values)
    again = Store.open(tmp_path, {"teacher": "a"}, 10, 3, run)
    assert torch.equal(again.read(torch.tensor([1, 7])), values[[1, 0]].half().float())
    assert again.missing.tolist() == [i not in (0, 1, 3, 7) for i in range(10)]
    assert again.num_missing == 6


@pytest.mark.parametrize("change", [{"teacher": "b"}, {"view": 1}])
def test_another_record_is_another_store(tmp_path: Path, run: Run, change: dict[str, object]) -> None:
    record = {"teacher": "a", "view": 0}
    write(Store.open(tmp_path, record, 4, 2, run), torch.arange(4), torch.ones(4, 2))
    assert Store.open(tmp_path, record | change, 4, 2, run).num_missing == 4
    assert Store.open(tmp_path, record, 4, 3, run).num_missing == 4
    assert Store.open(tmp_path, record, 4, 2, run, "float32").num_missing == 4
    assert Store.open(tmp_path, record, 4, 2, run).num_missing == 0


def test_broken_rows_are_no_longer_missing_and_never_read(tmp_path: Path, run: Run) -> None:
    store = Store.open(tmp_path, {}, 3, 2, run)
    store.mark_broken(torch.tensor([1]))
    assert store.missing.tolist() == [True, False, True]
    with pytest.raises(AssertionError, match="only rows that were written"):
        store.read(torch.tensor([1]))


def test_values_beyond_float16_are_refused_and_leave_the_row_empty(tmp_path: Path, run: Run) -> None:
    store = Store.open(tmp_path, {}, 2, 2, run)
    with pytest.raises(ValueError, match="features up to 1e\\+06 do not fit float16: use float32"):
        store.write(torch.tensor([0]), torch.tensor([[1e6, 0.0]]))
    assert store.num_missing == 2
    wide = Store.open(tmp_path, {}, 2, 2, run, "float32")
    wide.write(torch.tensor([0]), torch.tensor([[1e6, 0.0]]))
    assert float(wide.read(torch.tensor([0]))[0, 0]) == 1e6


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ValueError, match="GiB free, 1 x 1000 rows of 64 float16 need"):
        Store.open(tmp_path / "cache", {}, 1000, 64, run)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_size_that_is_announced_is_the_size_on_disk(tmp_path: Path, run: Run) -> None:
    store = Store.open(tmp_path, {}, 1000, 64, run)
    write(store, torch.arange(1000), torch.ones(1000, 64))
    assert sum(file.stat().st_size for file in store.path.glob("*.rows")) == store_bytes(1000, 64)


def test_the_cache_stands_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path))
    assert cache_directory("alignments") == tmp_path / "alignments"
    monkeypatch.delenv("STILLROOM_CACHE")
    assert cache_directory("alignments") == Path.home() / ".cache" / "stillroom" / "alignments"


@pytest.mark.parametrize("length", [0, 130, 200])
def test_the_rows_of_a_file_that_was_cut_short_are_empty_and_those_of_others_stay(
    tmp_path: Path, run: Run, length: int
) -> None:
    store = Store.open(tmp_path, {"a": 1}, 50, 8, run, "float32", batch_size=10)
    write(store, torch.arange(50), torch.ones(50, 8))
    first, *_ = files = sorted(store.path.glob("*.rows"))
    assert len(files) == 5
    first.write_bytes(first.read_bytes()[:length])
    again = Store.open(tmp_path, {"a": 1}, 50, 8, run, "float32", batch_size=10)
    assert again.missing.tolist() == [True] * 10 + [False] * 40
    first.unlink()
    assert again.num_missing == 10
    write(again, torch.arange(10), torch.ones(10, 8))
    assert Store.open(tmp_path, {"a": 1}, 50, 8, run, "float32", batch_size=10).num_missing == 0


@pytest.mark.parametrize(
    ("rows", "batch_size", "expected"),
    [
        (96, 64, 64),
        (96, 24, 24),
        (1_281_167, 64, 20_032),
        (10**9, 64, 65_536),
        (10**9, 60, 65_520),
        (3, 100_000, 100_000),
    ],
)
def test_a_file_holds_whole_batches_and_64_processes_can_share_a_store(
    rows: int, batch_size: int, expected: int
) -> None:
    assert count_chunk_rows(rows, batch_size) == expected


def test_a_full_file_is_written_at_once_and_the_rest_when_the_pass_ends_even_by_an_error(
    tmp_path: Path, run: Run
) -> None:
    store = Store.open(tmp_path, {}, 30, 2, run, batch_size=10)
    store.write(torch.arange(10), torch.ones(10, 2))
    assert [file.name for file in store.path.glob("*.rows")] == ["000000.rows"]
    with pytest.raises(KeyboardInterrupt), store:
        store.write(torch.arange(10, 15), torch.ones(5, 2))
        raise KeyboardInterrupt
    assert Store.open(tmp_path, {}, 30, 2, run, batch_size=10).missing.tolist() == [False] * 15 + [True] * 15


def test_rows_are_flushed_every_few_minutes_so_that_a_killed_process_loses_no_more(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path, {}, 30, 2, run, batch_size=10)
    store.write(torch.arange(2), torch.ones(2, 2))
    assert list(store.path.glob("*.rows")) == []
    monkeypatch.setattr(store_module, "FLUSH_SECONDS", 0.0)
    store.write(torch.arange(2, 4), torch.ones(2, 2))
    assert Store.open(tmp_path, {}, 30, 2, run, batch_size=10).num_missing == 26


def test_a_reader_finds_what_another_process_writes_later(tmp_path: Path, run: Run) -> None:
    reader, owner = (Store.open(tmp_path, {}, 30, 2, run, "float32", batch_size=10) for _ in range(2))
    write(owner, torch.tensor([0]), torch.ones(1, 2))
    assert reader.read(torch.tensor([0])).tolist() == [[1.0, 1.0]]
    write(owner, torch.arange(1, 30), 2 * torch.ones(29, 2))
    assert reader.read(torch.tensor([29, 0, 5])).tolist() == [[2.0, 2.0], [1.0, 1.0], [2.0, 2.0]]
    assert reader.values.tolist() == owner.values.tolist()


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_what_was_stored(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path, {}, 30, 2, run, batch_size=10)
    write(store, torch.arange(15), torch.ones(15, 2))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "write_file", full)
    store.write(torch.arange(15, 18), torch.ones(3, 2))
    with pytest.raises(
        CacheError, match=r"000001\.rows cannot be written \(No space left on device\): set STILLROOM_CACHE"
    ):
        store.flush()
    assert Store.open(tmp_path, {}, 30, 2, run, batch_size=10).num_missing == 15


def test_a_store_of_an_older_layout_is_another_key_and_never_read(tmp_path: Path, run: Run) -> None:
    record = {"teacher": "a"}
    old = tmp_path / cache_key({**record, "rows": 4, "dim": 2, "dtype": "float16"})  # as 0.5 named it
    old.mkdir()
    np.save(old / "values.npy", np.ones((4, 2), np.float16))
    np.save(old / "states.npy", np.ones(4, np.uint8))
    (old / "record.json").write_text("{}")
    assert Store.open(tmp_path, record, 4, 2, run).num_missing == 4


def test_the_key_of_a_record_is_that_of_older_versions() -> None:
    """Computed with stillroom-backbone 0.3.0: caches that people have are found again."""
    record = {"weights": "a" * 64, "images": {"count": 3, "view": [1, 2.5, None]}, "path": "x"}
    assert cache_key(record) == "78c9757f4e935b9319d453ab240b1b74"


def below_a_file(folder: Path) -> Path:
    """A folder that nobody can make, not even root."""
    (folder / "file").write_text("")
    return folder / "file" / "cache"


def test_a_cache_that_cannot_be_written_is_a_cache_error_and_what_needs_it_may_go_on(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    root = below_a_file(tmp_path)
    for _ in range(2):
        with optional_cache(run, root):
            Store.open(root, {}, 4, 2, run)
    with optional_cache(run, root):
        write_file(root / "a", "")
    with optional_cache(run, root), pytest.raises(KeyError):
        raise KeyError
    refused, written = capsys.readouterr().err.splitlines()  # each is said once
    advice = "set STILLROOM_CACHE to a folder that can; the run goes on without this cache"
    assert refused == f"warning: {root} cannot be written (Not a directory): {advice}"
    assert written == f"warning: {root} cannot be written (Not a directory); the run goes on without this cache"


def test_a_read_only_store_is_read_where_it_is_complete(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path, {}, 2, 3, run, "float32")
    write(store, torch.tensor([0]), torch.ones(1, 3))
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on a read-only disk; chmod does not stop root
    with pytest.raises(CacheError, match="is incomplete and cannot be written: set STILLROOM_CACHE"):
        Store.open(tmp_path, {}, 2, 3, run, "float32")
    write(store, torch.tensor([1]), torch.ones(1, 3))
    again = Store.open(tmp_path, {}, 2, 3, run, "float32")
    assert torch.equal(again.values, torch.ones(2, 3))
    again.values.fill_(7)  # of this process alone
    assert torch.equal(store.read(torch.arange(2)), torch.ones(2, 3))


def test_without_a_home_the_cache_is_a_temporary_folder_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STILLROOM_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # KeyError, as for a user without a passwd entry
    root = Path(tempfile.gettempdir()) / f"stillroom-{os.getuid()}"
    assert [cache_directory(kind) for kind in ("a", "b")] == [root / "a", root / "b"]
    assert capsys.readouterr().err == (
        f"warning: there is no home directory, so caches are kept in {root}: set STILLROOM_CACHE to another folder\n"
    )


def test_two_runs_that_fill_one_store_keep_each_others_rows(tmp_path: Path, run: Run) -> None:
    first, second = (Store.open(tmp_path, {"a": 1}, 12_288, 2, run) for _ in range(2))
    with second:
        second.write(torch.arange(64), torch.ones(64, 2))
        with first:  # ends before the other has written a file
            first.write(torch.arange(64, 128), torch.full((64, 2), 2.0))
    assert first.read(torch.arange(128)).unique().tolist() == [1.0, 2.0]
    assert first.num_missing == 12_288 - 128
