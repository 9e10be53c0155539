"""A run from elsewhere: neither its config.py nor its states can run code."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer

from stillroom.seg_transfer import SegmentConfig, finetune, predict, resume
from stillroom.seg_transfer.states import HARMLESS, get_statistic, load_state

Make = Callable[..., SegmentConfig]


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


@pytest.fixture
def strange(make_config: Make, tmp_path: Path) -> Path:
    """A finished run whose config.py and last state make a file when they are run."""
    out = finetune(make_config(steps=2))
    trap = tmp_path / "trap"
    (out / "config.py").write_text(f"open({str(trap)!r}, 'w')\n")
    return out


def poison(out: Path, **meta: object) -> None:
    """Put objects into the last state."""
    state = torch.load(out / "iter_2.pth", weights_only=False)  # the file is this test's own
    state["meta"] |= meta
    torch.save(state, out / "iter_2.pth")


def test_predict_reads_json_and_safetensors_alone(strange: Path, masked: Path, tmp_path: Path) -> None:
    for file in (*strange.glob("*.pth"), strange / "config.py"):
        file.write_bytes(pickle.dumps(Payload(tmp_path / "trap")))
    answers = predict(strange, masked / "images" / "val", tmp_path / "answers", device="cpu")
    assert len(list((answers / "masks").iterdir())) == 3 and not (tmp_path / "trap").exists()


def test_an_older_run_is_predicted_with_from_the_tensors_of_its_state(
    strange: Path, masked: Path, tmp_path: Path
) -> None:
    shutil.move(strange / "checkpoint", tmp_path / "with")
    shutil.copytree(strange / "initial", strange / "checkpoint")  # of the same net, without a decoder
    answers = predict(strange, masked / "images" / "val", tmp_path / "answers", device="cpu")
    assert len(list((answers / "masks").iterdir())) == 3
    poison(strange, extra=Payload(tmp_path / "trap"))
    with pytest.raises(ValueError, match=r"iter_2.pth holds objects that can run code .*: pass --trust-run if the run"):
        predict(strange, masked / "images" / "val", tmp_path / "other", device="cpu")
    (strange / "iter_2.pth").unlink()
    with pytest.raises(ValueError, match=r"run has no complete iter_\*.pth: train it again"):
        predict(strange, masked / "images" / "val", tmp_path / "other", device="cpu")
    assert not (tmp_path / "trap").exists() and not (tmp_path / "other").exists()


def test_resume_runs_neither_config_nor_state(strange: Path, tmp_path: Path) -> None:
    (strange / "results.json").unlink()
    trap = tmp_path / "trap"
    poison(strange, config=f"open({str(trap)!r}, 'w')\n")  # MMEngine runs this text as Python
    resume(strange)
    assert not trap.exists()
    (strange / "results.json").unlink()
    poison(strange, extra=Payload(trap))
    with pytest.raises(ValueError, match=r"iter_2.pth holds objects that can run code .*: pass --trust-run if the run"):
        resume(strange)
    assert not trap.exists()


def test_nothing_callable_is_among_the_harmless_types_but_numpys_rebuilding() -> None:
    functions = [kind for kind in HARMLESS if not isinstance(kind, type)]
    assert functions.pop(0) == (get_statistic, "builtins.getattr")
    assert [kind.__name__ for kind in functions] == ["_reconstruct", "scalar"]
    assert get_statistic(HistoryBuffer, "mean") is HistoryBuffer.mean
    for owner, name in ((HistoryBuffer, "__init__"), (dict, "min")):
        with pytest.raises(pickle.UnpicklingError, match=r"GLOBAL getattr of"):
            get_statistic(owner, name)


def test_a_state_that_is_no_state_is_named(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "iter_1.pth")
    with pytest.raises(ValueError, match=r"iter_1.pth is not a state of MMEngine: remove it, and the state"):
        load_state(str(tmp_path / "iter_1.pth"))
