"""States on disk: two of them, each with its hash, written beside training."""

import re
from collections import OrderedDict
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from stillroom.backbone.errors import sentence_for
from stillroom.runs import Run, RunDirectory, states
from stillroom.runs.run_files import PREVIOUS, STATE
from stillroom.runs.states import load_last_state, read_state, snapshot, write_state


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """A run with states of the steps 2 and 4."""
    (tmp_path / "run" / "state").mkdir(parents=True)
    for step in (2, 4):
        write_state(tmp_path / "run", {"step": step, "w": torch.full((100,), float(step))})
    return tmp_path / "run"


def test_a_state_is_a_torch_file_and_is_read_back(twice: Path) -> None:
    assert torch.load(twice / STATE, weights_only=True)["step"] == 4
    assert read_state(twice / STATE)["w"].tolist() == [4.0] * 100
    assert read_state(twice / PREVIOUS)["step"] == 2


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_state_falls_back_to_the_one_before_and_that_is_said(
    twice: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (twice / STATE).read_bytes()
    (twice / STATE).write_bytes(content[: int(share * len(content))])
    state = load_last_state(twice, says=True)
    assert state is not None and state["step"] == 2
    said = capsys.readouterr().err
    assert f"warning: {twice / STATE} is damaged: " in said
    assert f"{twice} goes on from the state before, of step 2" in said


def test_one_changed_bit_is_noticed_wherever_it_is(twice: Path) -> None:
    content = bytearray((twice / STATE).read_bytes())
    for place in range(0, len(content) - 80, len(content) // 20):
        changed = bytearray(content)
        changed[place] ^= 1
        (twice / STATE).write_bytes(changed)
        with pytest.raises(ValueError, match=r"last\.pt is damaged, "):
            read_state(twice / STATE)


def test_a_state_without_a_hash_is_read_as_an_older_version_wrote_it(twice: Path) -> None:
    torch.save({"step": 7}, twice / STATE)
    assert load_last_state(twice, says=True) == {"step": 7}


def test_a_process_that_was_killed_between_the_renames_left_the_state_before(twice: Path) -> None:
    (twice / STATE).unlink()
    (twice / "state" / "new.pt").write_bytes(b"torn")
    state = load_last_state(twice, says=True)
    assert state is not None and state["step"] == 2
    write_state(twice, {"step": 3})
    assert read_state(twice / STATE)["step"] == 3
    assert sorted(file.name for file in (twice / "state").iterdir()) == ["last.pt", "previous.pt"]


def test_where_no_state_is_whole_nothing_is_resumed(twice: Path) -> None:
    for name in (STATE, PREVIOUS):
        (twice / name).write_bytes(b"PK")
    sentence = rf"last\.pt is damaged, .*: remove it, and {re.escape(str(twice))} is resumed from its first step"
    with pytest.raises(ValueError, match=sentence):
        load_last_state(twice, says=True)


def test_a_damaged_state_does_not_push_the_good_one_out(twice: Path, run: Run) -> None:
    (twice / STATE).write_bytes(b"PK")
    directory, state = RunDirectory.reopen(twice, run)
    assert state is not None and state["step"] == 2
    assert read_state(twice / STATE)["step"] == 2 and not (twice / PREVIOUS).exists()
    directory.close()


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, words)

    if call == "fsync":
        monkeypatch.setattr(states, "os", SimpleNamespace(fsync=refuse, SEEK_END=2))
    else:
        monkeypatch.setattr(Path, call, refuse)


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [("open", 30, "Read-only file system"), ("fsync", 28, "No space left on device"), ("replace", 122, "Disk quota")],
)
def test_a_full_disk_or_a_read_only_folder_leaves_the_last_state_and_says_so(
    twice: Path, run: Run, monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: str
) -> None:
    directory, _ = RunDirectory.reopen(twice, run)
    with monkeypatch.context() as patched:
        fail_at(patched, call, number, words)
        directory.save_state({"step": 6})
        directory._states.finish(twice)
    with pytest.raises(OSError, match=words) as caught:
        directory.is_due(7, None, 10.0)
    sentence = sentence_for(caught.value)
    assert sentence is not None
    assert sentence.startswith(f"{twice / STATE}: {words}; the last good state is kept; no file is half-written")
    assert read_state(twice / STATE)["step"] == 4 and read_state(twice / PREVIOUS)["step"] == 2
    directory.close()


def test_training_goes_on_while_a_state_is_written_and_does_not_change_it(
    twice: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, save = Event(), torch.save

    def slow(*arguments: Any) -> None:
        assert release.wait(10)
        save(*arguments)

    directory, _ = RunDirectory.reopen(twice, run)
    weights = torch.zeros(3)
    monkeypatch.setattr(torch, "save", slow)
    directory.save_state({"step": 5, "w": weights})
    weights += 1  # the next step
    assert read_state(twice / STATE)["step"] == 4
    release.set()
    directory.close()
    assert read_state(twice / STATE)["w"].tolist() == [0.0] * 3


def test_a_snapshot_keeps_the_versions_of_layers() -> None:
    before = nn.BatchNorm1d(2).state_dict()
    taken = snapshot({"net": before, "steps": [1, (2, torch.ones(1))]})
    assert isinstance(taken["net"], OrderedDict) and taken["net"]._metadata == before._metadata
    assert taken["net"]["weight"].data_ptr() != before["weight"].data_ptr()
    assert taken["steps"] == [1, (2, torch.ones(1))]


def test_a_state_of_another_batch_size_is_refused_and_one_of_another_world_size_is_not(twice: Path, run: Run) -> None:
    write_state(twice, {"step": 5, "world_size": 8, "batch_size": 64})
    directory, state = RunDirectory.reopen(twice, run, batch_size=64)
    assert state is not None and state["step"] == 5
    directory.close()
    sentence = (
        r"the last state of .* is of batch size 64, its config\.json says 32: restore 64 \(the number of processes"
    )
    with pytest.raises(ValueError, match=sentence):
        RunDirectory.reopen(twice, run, batch_size=32)


def test_states_say_their_batch_size_and_number_of_processes(twice: Path, run: Run) -> None:
    directory, _ = RunDirectory.reopen(twice, run, batch_size=16)
    directory.save_state({"step": 6})
    directory.close()
    assert read_state(twice / STATE) == {"step": 6, "world_size": 1, "batch_size": 16}


def test_a_run_that_was_killed_between_the_renames_is_resumed(twice: Path, run: Run) -> None:
    (twice / STATE).unlink()
    directory, state = RunDirectory.reopen(twice, run)
    directory.close()
    assert state is not None and state["step"] == 2 and read_state(twice / STATE)["step"] == 2
