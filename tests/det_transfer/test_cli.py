"""The command line, and its error where Detectron2 is missing."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest

from commands import run_main
from stillroom.det_transfer import cli
from stillroom.det_transfer.presets import PRESETS
from stillroom.runs import read_results

run_cli = partial(run_main, cli.main)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, preset: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_cli(monkeypatch, preset, "--help")
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "--anchor-scale" in said and "DIR|NAME" in said


def test_presets_have_the_schedule_of_their_data_set() -> None:
    for name, preset in PRESETS.items():
        config = preset(checkpoint=("x",), out=Path("x"))
        schedule = {"voc0712": (18_000, 100, 480), "coco2017": (90_000, 1000, 640), "coco": (90_000, 1000, 640)}
        if name != "smoke":
            assert (config.steps, config.warmup, config.train_sizes[0]) == schedule[config.layout], name
    voc = PRESETS["legacy-kdep-r18-c4"](checkpoint=("x",), out=Path("x"))
    assert (voc.neck, voc.legacy, voc.stride_in_1x1) == ("c4", "std-1", True)
    legacy = PRESETS["legacy-kdep-r18-c4-coco"](checkpoint=("x",), out=Path("x"))
    assert not legacy.stride_in_1x1, "its config for COCO says so"
    assert (legacy.layout, legacy.legacy, legacy.detector, legacy.neck) == ("coco2017", "rgb-mean", "mask-rcnn", "c4")


def test_a_run_from_the_command_line_prints_its_ap_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, boxed: Path, tmp_path: Path
) -> None:
    flags = ["--data", str(boxed), "--out", str(tmp_path / "run"), "--workers", "0", "--device", "cpu"]
    run_cli(monkeypatch, "smoke", *flags, "--steps", "2", "--train-sizes", "48", "--test-size", "48")
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1].startswith(f"{tmp_path / 'run'}: ") and " % AP" in lines[-1]
    assert any(line.startswith("| blue ") for line in lines)


@pytest.mark.slow
def test_resume_takes_data_from_where_it_was_moved_and_no_other_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, boxed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    flags = ["--data", str(boxed), "--out", str(out), "--workers", "0", "--device", "cpu"]
    run_cli(monkeypatch, "smoke", *flags, "--steps", "1", "--train-sizes", "48", "--test-size", "48")
    (out / "results.json").unlink()
    moved = boxed.rename(tmp_path / "moved")
    run_cli(monkeypatch, "resume", str(out), "--data", str(moved))
    assert read_results(out).extra["moved"] == {"data": str(moved)}
    (out / "results.json").unlink()
    image = moved / "images" / "val" / "00.png"
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    capsys.readouterr()
    assert "the data in " in fault(monkeypatch, capsys, "resume", str(out), "--data", str(moved))


def fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: str) -> str:
    """The error of a command that exits with code 2."""
    with pytest.raises(SystemExit) as stopped:
        run_cli(monkeypatch, *words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip()


def test_bad_input_is_one_sentence_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    words = ["--checkpoint", "random:cifar/resnet20", "--data", str(tmp_path / "no"), "--out", str(tmp_path / "o")]
    said = fault(monkeypatch, capsys, "faster-rcnn-fpn", "--backend", "torchvision", *words)
    assert said.endswith(f"error: there is no folder {tmp_path / 'no'}")


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is not None, reason="Detectron2 is installed")
def test_without_detectron2_one_sentence_names_both_alternatives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, boxed: Path, tmp_path: Path
) -> None:
    words = ["--checkpoint", "random:torchvision/resnet18", "--data", str(boxed), "--out", str(tmp_path / "o")]
    said = fault(monkeypatch, capsys, "faster-rcnn-fpn", *words)
    assert "https://detectron2.readthedocs.io" in said and "--backend torchvision" in said
    assert len(said.splitlines()) == 1 and not (tmp_path / "o").exists()
