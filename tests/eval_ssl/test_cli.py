"""The command line, as its users type it."""

import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import jaxtyping
import pytest

from stillroom.eval_ssl import (
    FeaturesConfig,
    FewShotConfig,
    KnnConfig,
    LegacySimregConfig,
    LegacySimregKnnConfig,
    LinearConfig,
    LogregConfig,
)
from stillroom.eval_ssl.cli import main
from stillroom.runs import read_results

Make = Callable[..., Path]
Cli = Callable[..., None]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call the entry point with words, in this process; a wide terminal, so that no line of the help is broken."""

    def call(*words: object) -> None:
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # tyro.MISSING stands for flags of all types
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setattr(sys, "argv", ["stillroom-eval-ssl", *map(str, words)])
        main()

    return call


@pytest.fixture
def folders(labelled: Make) -> list[str]:
    train, test = labelled("train", per_class=8), labelled("test", per_class=4, seed=1)
    return ["--train", str(train), "--test", str(test)]


def test_smoke_prints_protocol_table_and_the_number_that_matters(
    cli: Cli, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("smoke", *folders, "--out", tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    results = read_results(tmp_path / "run")
    assert lines[0] == results.protocol
    assert list(results.metrics)[:5] == ["top1_k1", "top1_k5", "top1_k10", "top1_k20", "top5_k1"]
    assert lines[-1] == f"{tmp_path / 'run'}: {100 * results.metrics['top1_k20']:.1f} % top-1 at k = 20"


def test_flags_reach_the_evaluation(cli: Cli, folders: list[str], tmp_path: Path) -> None:
    flags = ["--k", "1", "3", "--size", "16", "--crop-fraction", "0.8", "--feature", "before", "--seed", "4"]
    cli("knn", "--checkpoint", "random:cifar/resnet20", *folders, "--out", tmp_path / "run", *flags, "--workers", "0")
    results = read_results(tmp_path / "run")
    assert list(results.metrics)[:3] == ["top1_k1", "top1_k3", "top5_k1"] and results.seed == 4
    assert "feature=before size=16 crop=0.8" in results.protocol
    assert results.made_by.config["workers"] == 0


@pytest.mark.parametrize("missing", ["--checkpoint", "--train", "--out"])
def test_a_missing_flag_is_named(cli: Cli, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    given = {"--checkpoint": "random:cifar/resnet20", "--train": "a", "--test": "b", "--out": "c"}
    with pytest.raises(SystemExit) as stopped:
        cli("knn", *(word for flag, value in given.items() if flag != missing for word in (flag, value)))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert missing in error and not any(flag in error for flag in given if flag != missing)


@pytest.mark.parametrize(
    ("flag", "value"), [("--k", "few"), ("--feature", "inside"), ("--device", "abacus"), ("--on-broken", "mend")]
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


def test_a_wrong_input_is_one_sentence_on_stderr_and_exit_code_2(
    cli: Cli, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli("smoke", *folders, "--out", tmp_path / "run", "--k", "99")
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == "error: k = 99 does not fit 24 training images: choose k from 1 to 24\n"
    assert printed.out == ""


@pytest.mark.parametrize(
    ("subcommand", "config"),
    [
        ("knn", KnnConfig),
        ("smoke", KnnConfig),
        ("linear", LinearConfig),
        ("linear-simreg", LinearConfig),
        ("legacy-simreg", LegacySimregConfig),
        ("legacy-simreg-knn", LegacySimregKnnConfig),
        ("logreg", LogregConfig),
        ("few-shot", FewShotConfig),
        ("features", FeaturesConfig),
    ],
)
def test_help_explains_every_flag_with_its_unit_and_default(
    cli: Cli, capsys: pytest.CaptureFixture[str], subcommand: str, config: type
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli(subcommand, "--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    flags = {flag.split()[0].rstrip(","): flag for flag in re.split(r" --(?!no-)(?=[a-z])", text)[1:]}
    del flags["help"]
    assert {name.split(".")[0] for name in flags} == {field.name.replace("_", "-") for field in fields(config)}
    for flag in flags.values():
        assert re.search(r"\. \((default: .*|required)\)", flag), f"no sentence, or no default: {flag}"
    size = 224 if subcommand.startswith("legacy-simreg") else None
    assert f"Input side, pixels; None as the checkpoint says. (default: {size})" in text
    assert "Crop over resized side, (0, 1]" in text
    assert "Images per forward pass. (default: 64)" in text


def test_help_lists_the_subcommands(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli("--help")
    text = capsys.readouterr().out
    assert "Exact k-NN classification of frozen features" in text and "k-NN of a random net" in text
