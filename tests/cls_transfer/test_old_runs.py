"""Runs that earlier versions began: kept, resumed and refused as they always were."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from old_run import write_data

from stillroom.backbone import build_backbone, replace_input, save_checkpoint
from stillroom.cls_transfer import ClassifyConfig, finetune, resume
from stillroom.cls_transfer.config import AXES, UNIONS
from stillroom.finetune.config import split
from stillroom.runs import read_results
from stillroom.runs.configs import load_config

FIXTURE = Path(__file__).parent / "fixtures" / "run-0.3"


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 0.3.3, stopped after step 4 of 12, which kept neither its initial weights nor fingerprints.json."""
    shutil.copytree(FIXTURE / "run", tmp_path / "run")
    shutil.copytree(FIXTURE / "first", tmp_path / "first")
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path("run")


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def overwrite_checkpoint() -> None:
    """Put other weights of the same net where the run's checkpoint was."""
    torch.manual_seed(1)
    other = build_backbone("timm/convnext_atto", arguments={"depths": [1, 1, 1, 1], "dims": [2, 2, 2, 2]})
    save_checkpoint("first", replace_input(other, size=32), method="kdep", package="stillroom-distill")


def test_an_old_run_is_resumed_from_its_state_and_its_checkpoint(old_run: Path) -> None:
    assert not (old_run / "initial").exists() and not (old_run / "fingerprints.json").exists()
    assert resume(old_run) == old_run
    assert losses(old_run) == pytest.approx(json.loads((FIXTURE / "whole.json").read_text()), rel=1e-3)
    assert read_results(old_run).metrics["val_top1"] == 1.0


def test_an_old_run_that_saved_no_state_starts_again(old_run: Path) -> None:
    (old_run / "state" / "last.pt").unlink()
    resume(old_run)
    assert losses(old_run) == pytest.approx(json.loads((FIXTURE / "whole.json").read_text()), rel=1e-3)


def test_an_old_run_whose_images_changed_is_not_resumed(old_run: Path) -> None:
    (Path("train") / "dark" / "0.bmp").unlink()
    with pytest.raises(ValueError, match="the data in train have changed since run began: choose another --out"):
        resume(old_run)


def test_an_old_run_whose_checkpoint_changed_is_not_resumed(old_run: Path) -> None:
    overwrite_checkpoint()
    with pytest.raises(ValueError, match=r"run began with other weights than first has now: it cannot be resumed"):
        resume(old_run)


def test_a_finished_old_run_is_kept_in_a_sweep_unless_its_images_or_its_checkpoint_changed(old_run: Path) -> None:
    resume(old_run)
    config = load_config(old_run, ClassifyConfig, UNIONS)
    sweep = Path("sweep")
    grown = ClassifyConfig(**{**vars(config), "out": sweep, "seeds": (0, 1)})
    cell = next(single.out for single in split(grown, AXES) if single.seed == 0)
    cell.parent.mkdir()
    shutil.move(old_run, cell)
    before = (cell / "results.json").stat().st_mtime_ns
    finetune(grown)
    assert (cell / "results.json").stat().st_mtime_ns == before and (sweep / "table.json").exists()
    overwrite_checkpoint()
    with pytest.raises(ValueError, match=r"the weights of first have changed since .* began: choose another --out"):
        finetune(grown)
    shutil.rmtree("first")
    shutil.copytree(FIXTURE / "first", "first")
    (Path("test") / "dark" / "0.bmp").unlink()
    with pytest.raises(ValueError, match=r"the data in test have changed since .* began: choose another --out"):
        finetune(grown)
