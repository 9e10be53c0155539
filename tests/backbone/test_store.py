"""Arrays kept on disk: keyed, resumable, never half a row."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stillroom.backbone import Run
from stillroom.backbone.store import Store, cache_directory, cache_key, store_bytes


@pytest.fixture
def run() -> Run:
    return Run(device=torch.device("cpu"))


def test_what_is_written_is_read_again_by_a_later_process(tmp_path: Path, run: Run) -> None:
    values = torch.randn(4, 3)
    Store.open(tmp_path, {"teacher": "a"}, 10, 3, run).write(torch.tensor([7, 1, 0, 3]), values)
    again = Store.open(tmp_path, {"teacher": "a"}, 10, 3, run)
    assert torch.equal(again.read(torch.tensor([1, 7])), values[[1, 0]].half().float())
    assert again.missing.tolist() == [i not in (0, 1, 3, 7) for i in range(10)]
    assert again.num_missing == 6


@pytest.mark.parametrize("change", [{"teacher": "b"}, {"view": 1}])
def test_another_record_is_another_store(tmp_path: Path, run: Run, change: dict[str, object]) -> None:
    record = {"teacher": "a", "view": 0}
    Store.open(tmp_path, record, 4, 2, run).write(torch.arange(4), torch.ones(4, 2))
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
    on_disk = sum(file.stat().st_size for file in store.path.glob("*.npy"))
    assert on_disk == pytest.approx(store_bytes(1000, 64), abs=300)  # the headers of two .npy files
    assert np.load(store.path / "values.npy").shape == (1000, 64)


def test_the_cache_stands_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path))
    assert cache_directory("alignments") == tmp_path / "alignments"
    monkeypatch.delenv("STILLROOM_CACHE")
    assert cache_directory("alignments") == Path.home() / ".cache" / "stillroom" / "alignments"


@pytest.mark.parametrize("name", ["values.npy", "states.npy"])
@pytest.mark.parametrize("length", [0, 130, 200])
def test_a_store_that_was_cut_short_is_made_anew(tmp_path: Path, run: Run, name: str, length: int) -> None:
    store = Store.open(tmp_path, {"a": 1}, 50, 8, run, "float32")
    store.write(torch.arange(50), torch.ones(50, 8))
    file = store.path / name
    del store
    whole = file.read_bytes()
    file.write_bytes(whole[: min(length, len(whole) - 1)])
    again = Store.open(tmp_path, {"a": 1}, 50, 8, run, "float32")
    assert again.num_missing == 50
    file.unlink()
    assert Store.open(tmp_path, {"a": 1}, 50, 8, run, "float32").num_missing == 50


def test_the_key_of_a_record_is_that_of_older_versions() -> None:
    """Computed with stillroom-backbone 0.3.0: caches that people have are found again."""
    record = {"weights": "a" * 64, "images": {"count": 3, "view": [1, 2.5, None]}, "path": "x"}
    assert cache_key(record) == "78c9757f4e935b9319d453ab240b1b74"
