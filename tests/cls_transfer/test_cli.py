"""The command line, as its users type it."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import jaxtyping
import pytest

from stillroom.cls_transfer import ClassifyConfig
from stillroom.cls_transfer.cli import main
from stillroom.cls_transfer.presets import PRESETS
from stillroom.runs import read_results
from stillroom.runs.schedule import Cosine, Step

Make = Callable[..., Path]
Cli = Callable[..., None]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call the entry point with words, in this process; a wide terminal, so that no line of the help is broken."""

    def call(*words: object) -> None:
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # tyro.MISSING stands for flags of all types
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setattr(sys, "argv", ["stillroom-cls-transfer", *map(str, words)])
        main()

    return call


@pytest.fixture
def folders(labelled: Make) -> list[str]:
    train, test = labelled("train", per_class=12), labelled("test", per_class=4, seed=1)
    return ["--train", str(train), "--test", str(test)]


def config_of(out: Path) -> dict:
    return json.loads((out / "config.json").read_text())


def test_smoke_prints_the_directory_and_the_number_that_matters(
    cli: Cli, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    cli("smoke", *folders, "--out", out)
    assert capsys.readouterr().out == f"{out}: {100 * read_results(out).metrics['top1']:.1f} % top-1\n"
    assert config_of(out)["checkpoint"] == ["random:cifar/resnet20"]
    assert ["loss" in json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] == [True, False]


def test_resume_ends_a_run_and_prints_the_same_line(
    cli: Cli, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    cli("smoke", *folders, "--out", out, "--size", "16", "--workers", "0", "--epochs", "2")
    printed = capsys.readouterr().out
    (out / "results.json").unlink()
    cli("resume", out, "--workers", "1", "--log-every", "2", "--device", "cpu")
    assert capsys.readouterr().out == printed
    config = read_results(out).made_by.config
    assert (config["workers"], config["log_every"], config["device"]) == (1, 2, "cpu")


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("finetune", {"lrs": (1e-3,), "batch_size": 64, "epochs": 150, "weight_decay": 5e-4, "min_scale": 0.08}),
        (
            "legacy-kdep",
            {
                "lrs": (1e-3,),
                "batch_size": 64,
                "normalise": False,
                "cifar100_statistics": True,
                "choose": "best-on-test",
                "val_every": 5,
                "held_out": 0.0,
            },
        ),
        ("scratch", {"lrs": (0.1,), "batch_size": 128, "epochs": 30, "weight_decay": 5e-4, "min_scale": 0.35}),
    ],
)
def test_a_preset_is_the_recipe_of_its_lab_note(preset: str, expected: dict[str, float]) -> None:
    config = PRESETS[preset](checkpoint=("random:cifar/resnet20",), out=Path("c"))
    assert {name: getattr(config, name) for name in expected} == expected
    schedule = Step(every=50, gamma=0.1) if preset == "legacy-kdep" else Cosine()
    assert (config.momentum, config.schedule) == (0.9, schedule)
    note = PRESETS[preset].__doc__ or ""
    assert f"batch {config.batch_size}" in note and f"{config.epochs} epochs" in note


@pytest.mark.parametrize("preset", ["finetune", "scratch"])
def test_flags_reach_the_run_in_any_order(cli: Cli, folders: list[str], tmp_path: Path, preset: str) -> None:
    out = tmp_path / "run"
    flags = ["--lr", "0.02", "--epochs", "1", "--batch-size", "6", "--size", "16", "--workers", "0", "--seed", "3"]
    schedule = ["schedule:step", "--schedule.every", "2", "--schedule.gamma", "0.5"]
    cli(preset, *flags, *schedule, *folders, "--out", out, "--checkpoint", "random:cifar/resnet20", "--amp", "bf16")
    config = config_of(out)
    assert [config[name] for name in ("lrs", "epochs", "batch_size", "size", "seeds", "amp")] == [
        [0.02],
        1,
        6,
        16,
        [3],
        "bf16",
    ]
    assert config["schedule"] == {"every": 2, "gamma": 0.5, "warmup_epochs": 0.0, "kind": "Step"}


@pytest.mark.parametrize("missing", ["--checkpoint", "--out"])
def test_a_missing_flag_is_named(cli: Cli, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    given = {"--checkpoint": "random:cifar/resnet20", "--out": "c"}
    with pytest.raises(SystemExit) as stopped:
        cli("finetune", *(word for flag, value in given.items() if flag != missing for word in (flag, value)))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert missing in error and not any(flag in error for flag in given if flag != missing)


def test_resume_without_a_directory_is_refused(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli("resume")
    assert stopped.value.code == 2
    assert "RUN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--epochs", "many"), ("--amp", "fp8"), ("--device", "abacus"), ("--on-broken", "mend"), ("--lr", "high")],
)
def test_a_bad_value_is_named(
    cli: Cli, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli("smoke", *folders, "--out", tmp_path / "run", flag, value)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert flag in error and value in error
    assert not (tmp_path / "run").exists()


def test_resume_takes_no_flag_that_would_change_the_result(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli("resume", tmp_path, "--lr", "0.1")
    assert stopped.value.code == 2
    assert "--lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["smoke", "--batch-size", "99"], "batch size 99 is larger than the data: 33 images"),
        (["smoke", "--epochs", "0"], "--epochs is 0: it must be at least 1"),
    ],
)
def test_a_wrong_input_is_one_sentence_on_stderr_and_exit_code_2(
    cli: Cli, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli(*words, *folders, "--out", tmp_path / "run")
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {sentence}\n"
    assert printed.out == ""


@pytest.mark.parametrize("subcommand", ["finetune", "scratch", "legacy-kdep", "smoke", "resume"])
def test_help_explains_every_flag_with_its_unit_and_default(
    cli: Cli, capsys: pytest.CaptureFixture[str], subcommand: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli(subcommand, "--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    flags = {flag.split()[0].rstrip(","): flag for flag in re.split(r" --(?!no-|lr |seed )(?=[a-z])", text)[1:]}
    del flags["help"]
    settings = {field.name.replace("_", "-") for field in fields(ClassifyConfig)} - {"schedule", "columns"}
    steps = {"schedule.every", "schedule.gamma"} if subcommand == "legacy-kdep" else {"schedule.change-every"}
    schedule = {"schedule.warmup-epochs", *steps}
    moved = {"checkpoint", "train", "test", "val", "data"}
    columns = {"columns.image", "columns.label"}
    wanted = {"device", "workers", "log-every", *moved} if subcommand == "resume" else settings | schedule | columns
    assert flags.keys() == wanted
    for flag in flags.values():
        assert re.search(r"\. \((default: .*|required)\)", flag), f"no sentence, or no default: {flag}"
    if subcommand != "resume":
        assert "Input side, pixels. None: the checkpoint's. (default: None)" in text
        assert "Images per step, over all processes. (default: " in text
        assert "Passes over the training images. (default: " in text


def test_help_shows_each_presets_lab_note(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli("--help")
    text = capsys.readouterr().out
    assert "He et al., CVPR 2022" in text and "lr 0.1, weight decay 5e-4, batch 128" in text
    assert "from its last state" in text and "Classify images with a fine-tuned checkpoint" in text
