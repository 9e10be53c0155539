"""Several initialisations, rates and seeds in one command."""

import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published import write_cub, write_dtd

from stillroom.backbone import build_backbone, replace_input, save_checkpoint
from stillroom.cls_transfer import ClassifyConfig, finetune, resume
from stillroom.cls_transfer.config import AXES
from stillroom.cls_transfer.table import report
from stillroom.finetune import lifecycle
from stillroom.finetune.config import split
from stillroom.runs import Run, read_results
from stillroom.runs.run import DivergedError
from stillroom.runs.schedule import Step
from stillroom.runs.sweep import directory_name

Make = Callable[..., Path]


@pytest.fixture
def config(labelled: Make, tmp_path: Path) -> ClassifyConfig:
    train, test = labelled("train", per_class=12), labelled("test", per_class=6, seed=1)
    torch.manual_seed(3)
    student = replace_input(build_backbone("cifar/resnet20"), size=16, mean=(0.1, 0.2, 0.3))
    save_checkpoint(tmp_path / "student", student, method="kdep", package="stillroom-distill")
    return ClassifyConfig(
        checkpoint=(str(tmp_path / "student"), "random"),
        train=train,
        test=test,
        out=tmp_path / "sweep",
        size=16,
        epochs=1,
        batch_size=11,
        lrs=(1e-9, 0.05),
        seeds=(0, 1),
        held_out=0.1,
        log_every=1,
        workers=0,
        device="cpu",
    )


def test_a_sweep_is_a_run_for_each_combination_and_one_table(config: ClassifyConfig) -> None:
    out = finetune(config)
    names = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert len(names) == 8 and sum(name.startswith("random-") and name.endswith("-lr0.05-seed1") for name in names) == 1
    table = json.loads((out / "table.json").read_text())
    assert table["seeds"] == [0, 1] and list(table["rows"]) == list(config.checkpoint)
    for net, by_task in table["rows"].items():
        found = by_task["folder"]
        runs = {name: read_results(out / name) for name in names if name.startswith(directory_name(net))}
        chances = {
            lr: statistics.mean(r.metrics["val_top1"] for r in runs.values() if r.made_by.config["lrs"] == [lr])
            for lr in config.lrs
        }
        assert chances[found["lr"]] == max(chances.values())
        assert found["top1"] == [read_results(out / name).metrics["top1"] for name in found["runs"]]
        assert [read_results(out / name).seed for name in found["runs"]] == [0, 1]
    first, second = (rows["folder"] for rows in table["rows"].values())
    assert first["over_first"] == [0, 0]
    assert second["over_first"] == [b - a for a, b in zip(first["top1"], second["top1"], strict=True)]
    text = report(out)
    assert f"| {config.checkpoint[0]} " in text and " +- " in text and "over the first" in text


def test_finished_runs_are_kept_and_a_stopped_one_is_resumed(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(config, lrs=(0.05,), save_every=1)
    whole = finetune(replace(small, out=config.out.with_name("whole")))
    started: list[str] = []
    start = lifecycle.start

    def stop_in_the_third(task: lifecycle.Task, cell: ClassifyConfig, run: Run) -> None:
        started.append(cell.out.name)
        start(task, cell, run)
        if len(started) == 3:
            (cell.out / "results.json").unlink()  # as if it had been killed before its end
            raise KeyboardInterrupt

    monkeypatch.setattr(lifecycle, "start", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        finetune(small)
    assert len(started) == 3 and not (small.out / "table.json").exists()
    with pytest.raises(ValueError, match="is a sweep: repeat its command, which resumes it"):
        resume(small.out)
    finetune(replace(small, workers=1))
    assert len(started) == 4 and len(set(started)) == 4  # the third was resumed, not begun anew
    tables = [json.loads((out / "table.json").read_text()) for out in (whole, small.out)]
    assert tables[0] == tables[1]
    finetune(small)
    assert len(started) == 4
    with pytest.raises(ValueError, match=r"is a run with other settings \(epochs\): choose another --out"):
        finetune(replace(small, epochs=2))


def test_random_has_the_net_of_the_first_checkpoint(config: ClassifyConfig) -> None:
    cells = split(config, AXES)
    assert {cell.like for cell in cells if cell.checkpoint == ("random",)} == {config.checkpoint[0]}
    with pytest.raises(ValueError, match="--checkpoint random names no net: pass random:NAME, or the net with --like"):
        finetune(replace(config, checkpoint=("random",), lrs=(0.1,), seeds=(0,)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seeds": ()}, "--seeds is empty"),
        ({"seeds": (0, 0)}, "--seeds lists 0 twice: pass it once"),
        ({"lrs": (0.1, -0.1)}, r"--lrs holds \[0\.1, -0\.1\]: it must be at least 0"),
        ({"held_out": 0.0}, "several --lrs need images to select one by"),
        ({"label_smoothing": 1.0}, r"--label-smoothing is 1\.0: it must lie in \[0, 1\)"),
        ({"layer_decay": 0.0}, r"--layer-decay is 0\.0"),
        ({"randaugment": 31}, "--randaugment is 31"),
        ({"mixup": -1.0}, "--mixup is -1.0: it must be at least 0"),
        ({"accumulate": 0}, "--accumulate is 0"),
        ({"hidden": (0,)}, r"--hidden holds \[0\]: it must be at least 1"),
    ],
)
def test_sweeps_that_cannot_be_are_one_sentence(config: ClassifyConfig, changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        finetune(replace(config, **changes))
    assert not config.out.exists()


def test_a_rate_that_diverges_is_left_out_and_the_others_are_kept(
    config: ClassifyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    out = finetune(replace(config, checkpoint=("random",), like=config.checkpoint[0], lrs=(1e30, 0.05)))
    table = json.loads((out / "table.json").read_text())
    assert table["rows"]["random"]["folder"]["lr"] == 0.05
    assert "lower --lr; no state had been saved yet" in capsys.readouterr().err
    reasons = {path: (path.read_text(), path.stat().st_mtime_ns) for path in out.glob("*/diverged.txt")}
    assert len(reasons) == 2 and all("lower --lr" in text for text, _ in reasons.values())
    again = replace(config, checkpoint=("random",), like=config.checkpoint[0], lrs=(1e30, 0.05))
    finetune(again)
    assert {path: (path.read_text(), path.stat().st_mtime_ns) for path in reasons} == reasons, "neither is done again"
    with pytest.raises(DivergedError, match="lower --lr"):
        finetune(replace(again, lrs=(1e30,), out=out.with_name("alone")))
    with pytest.raises(ValueError, match=r"is a run with other settings \(schedule\): choose another --out"):
        finetune(replace(config, checkpoint=("random",), like=config.checkpoint[0], lrs=(1e30, 0.05), schedule=Step()))
    with pytest.raises(ValueError, match="every rate of random diverged with some seed: pass smaller --lrs"):
        finetune(replace(config, checkpoint=("random",), like=config.checkpoint[0], lrs=(1e30, 1e31), out=out / "all"))


@pytest.mark.slow
def test_a_sweep_that_grows_repeats_nothing_and_refuses_what_changed(config: ClassifyConfig) -> None:
    small = replace(config, lrs=(0.05,))
    finetune(small)
    done = {path: path.stat().st_mtime_ns for path in small.out.glob("*/results.json")}
    grown = replace(small, checkpoint=(*small.checkpoint, "random:cifar/resnet20"), lrs=(0.05, 0.01))
    finetune(grown)
    assert len(list(small.out.glob("*/results.json"))) == 12
    assert {path: path.stat().st_mtime_ns for path in done} == done
    shutil.rmtree(config.checkpoint[0])
    student = replace_input(build_backbone("cifar/resnet20"), size=16)
    save_checkpoint(Path(config.checkpoint[0]), student, method="kdep", package="stillroom-distill")
    with pytest.raises(ValueError, match=r"the weights of .*student have changed since .* began: choose another --out"):
        finetune(small)
    next((config.test / "red").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"the data in .*test have changed since .* began"):
        finetune(replace(grown, checkpoint=("random:cifar/resnet20",)))


def test_several_tasks_share_one_table(config: ClassifyConfig, tmp_path: Path) -> None:
    write_dtd(tmp_path / "sets")
    write_cub(tmp_path / "sets")
    several = replace(
        config,
        train=None,
        test=None,
        tasks=("dtd", "cub"),
        data=tmp_path / "sets",
        partial=True,
        lrs=(0.05,),
        batch_size=2,
        seeds=(0,),
    )
    table = json.loads((finetune(several) / "table.json").read_text())
    for by_task in table["rows"].values():
        assert list(by_task) == ["dtd", "cub"]
        assert by_task["dtd"]["protocol"].startswith("classification/v2 dtd split=1 partial=2/8/4 held-out=0.1 ")
    assert "| dtd " in report(several.out) and "| cub " in report(several.out)
    with pytest.raises(ValueError, match="--tasks dtd has images of its own: leave out --train and --test"):
        finetune(replace(several, train=config.train, out=tmp_path / "other"))


def test_the_rate_is_chosen_by_the_held_out_part_whatever_the_test_says(config: ClassifyConfig) -> None:
    out = finetune(config)
    cells = [cell for cell in split(config, AXES) if cell.checkpoint == ("random",)]
    for cell in cells:
        file = cell.out / "results.json"
        content = json.loads(file.read_text())
        better = cell.lr == config.lrs[1]
        content["metrics"] |= {"val_top1": 0.9 if better else 0.1, "top1": 0.2 if better else 0.8}
        file.write_text(json.dumps(content))
    (out / "table.json").unlink()
    finetune(config)
    row = json.loads((out / "table.json").read_text())["rows"]["random"]["folder"]
    assert row["lr"] == config.lrs[1] and row["top1"] == [0.2, 0.2]


def test_what_cannot_work_in_a_later_run_stops_the_sweep_before_its_first(
    tmp_path: Path, config: ClassifyConfig
) -> None:
    write_dtd(tmp_path)
    late = replace(
        config,
        train=None,
        test=None,
        tasks=("dtd", "cub"),
        data=tmp_path,
        partial=True,
        held_out=0.0,
        lrs=(0.05,),
        batch_size=1,
        seeds=(0,),
    )
    with pytest.raises(ValueError, match=r"CUB_200_2011/images.txt cannot be read"):
        finetune(late)
    assert not late.out.exists()
