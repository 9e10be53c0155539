"""`stillroom-distill` as people type it."""

import sys
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

from stillroom.distill import load_alignment
from stillroom.distill.cli import FitAlignment, main
from stillroom.distill.nets import Net
from stillroom.runs import read_results
from stillroom.runs.claims import Claim
from twins import assert_bit_equal


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run the command; a string may hold several words."""
    words = [word for value in arguments for word in (value.split() if isinstance(value, str) else [str(value)])]
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # tyro.MISSING replaces values of all types
    monkeypatch.setenv("COLUMNS", "300")  # no line of the help is broken
    monkeypatch.setattr(sys, "argv", ["stillroom-distill", *words])
    main()


SMALL = ("--device", "cpu", "--workers", 0)


def test_flags_come_in_any_order_and_reach_the_run(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    teacher = "--teacher random:cifar/resnet20 --teacher.size 16 --teacher.feature after"
    slots = "alignment:svd --alignment.dim 64 schedule:cosine"
    student = "--student.size 16 --student cifar/resnet20"
    paths = ("--data", unlabelled, "--out", out)
    call(monkeypatch, "kdep --epochs 1", teacher, slots, *SMALL, student, *paths, "--batch-size 32")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{out}: loss ")
    config = read_results(out).made_by.config
    assert (config["alignment"]["kind"], config["schedule"]["kind"]) == ("Svd", "Cosine")
    assert config["teacher"]["name"] == ["random:cifar/resnet20"]
    assert (config["teacher"]["feature"], config["teacher"]["size"]) == (["after"], [16])
    call(monkeypatch, "resume", out)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{out}: loss ")


def test_fit_alignment_writes_a_file_that_kdep_takes(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "basis.safetensors"
    teacher = ("--teacher", "random:cifar/resnet20", "--teacher.size", 16)
    call(monkeypatch, "fit-alignment", *teacher, "--data", unlabelled, "--dim", 64, "--out", file, *SMALL)
    assert load_alignment(file)[1].count == 96
    student = "--student cifar/resnet20 --student.size 16 --epochs 1 --batch-size 32"
    paths = ("--data", unlabelled, "--alignment-file", file, "--out", tmp_path / "run")
    call(monkeypatch, "kdep", *teacher, student, *paths, *SMALL)
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, "fit-alignment", *teacher, "--data", unlabelled, "--dim", 64, "--out", file, *SMALL)
    assert exit_.value.code == 2


def test_a_repeated_fit_is_kept_if_nothing_changed(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "basis.safetensors"
    nets = ("--teacher random:cifar/resnet20 --teacher.size 16 --if-exists resume", "--out", file, *SMALL)
    words = ("fit-alignment", *nets, "--data", unlabelled)
    call(monkeypatch, *words, "--dim 64")
    written, said = file.stat().st_mtime_ns, capsys.readouterr().out.splitlines()[-1]
    call(monkeypatch, *words, "--dim 64")
    assert file.stat().st_mtime_ns == written and capsys.readouterr().out.splitlines()[-1] == f"{said}; kept"
    (unlabelled / "0000.png").unlink()
    for changes, sentence in {
        "--dim 32": f"{file} holds SvdPts",
        "--dim 64": f"{file} was fitted on something else (data_fingerprint, count): choose another --out",
        "--dim 64 --seed 1 --alignment-view training": f"{file} was fitted on something else (view, data_fingerprint",
        "--dim 64 --shard-teacher": "--shard-teacher divides weights over several processes, and this is one",
    }.items():
        with pytest.raises(SystemExit) as exit_:
            call(monkeypatch, *words, changes)
        assert exit_.value.code == 2 and f"error: {sentence}" in capsys.readouterr().err
    file.write_text("notes")
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, *words, "--dim 64")
    assert exit_.value.code == 2 and f"error: {file} is not an alignment file" in capsys.readouterr().err
    assert file.read_text() == "notes" and not list(tmp_path.glob(".*"))


def test_a_fit_that_a_living_process_writes_is_refused(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "basis.safetensors"
    claim = Claim(file)
    claim.take()
    with pytest.raises(SystemExit) as exit_:
        teacher = "--teacher random:cifar/resnet20 --teacher.size 16 --dim 64"
        call(monkeypatch, "fit-alignment", teacher, "--data", unlabelled, "--out", file, *SMALL)
    claim.release()
    assert exit_.value.code == 2 and "basis.safetensors is being written by process" in capsys.readouterr().err


def test_two_processes_fit_with_a_divided_teacher_and_a_broken_image_ends_both_with_its_name(
    unlabelled: Path, tmp_path: Path, in_two_processes: Callable[[Callable[[], object]], list]
) -> None:
    def command(name: str) -> FitAlignment:
        net, out = Net(name="random:cifar/resnet20", size=16), tmp_path / f"{name}.safetensors"
        return FitAlignment(
            teacher=net, data=unlabelled, out=out, dim=16, device="cpu", workers=0, shard_teacher=name == "divided"
        )

    def fit_both() -> str:
        command("whole").run()
        command("divided").run()
        (unlabelled / "0070.png").write_bytes(b"torn")  # of the second process's batch
        with pytest.raises(ValueError, match=r"0070\.png") as failed:
            command("broken").run()
        return str(failed.value)

    said = in_two_processes(fit_both)
    assert sorted(text.startswith("process 1 of the run has failed: ") for text in said) == [False, True]
    whole, divided = (load_alignment(tmp_path / f"{name}.safetensors")[0] for name in ("whole", "divided"))
    assert_bit_equal(whole.state_dict(), divided.state_dict())
    assert not list(tmp_path.glob(".*claim"))


def test_fit_alignment_on_random_views_is_what_such_a_run_fits(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "basis.safetensors"
    teacher = "--teacher random:cifar/resnet20 --teacher.size 16"
    shared = (teacher, "--data", unlabelled, "--seed 3 --alignment-view training", *SMALL)
    view = ("view:kdep-view", "--view.min-scale", 0.5)
    call(monkeypatch, "fit-alignment", *shared, "--dim", 64, "--out", file, *view)
    student = "--student cifar/resnet20 --student.size 16 --epochs 1 --batch-size 32"
    call(monkeypatch, "kdep", *shared, student, "--out", tmp_path / "run", *view)
    (own, inputs), (theirs, others) = load_alignment(file), load_alignment(tmp_path / "run" / "alignment.safetensors")
    assert inputs == others and "min_scale=0.5" in str(inputs.view)
    assert torch.equal(own.alignment.svd.basis_, theirs.alignment.svd.basis_)


def test_import_alignment_reads_npy_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "v.npy", np.eye(8, dtype=np.float32))
    np.save(tmp_path / "mean.npy", np.zeros(8, dtype=np.float32))
    np.save(tmp_path / "s.npy", np.arange(8, 0, -1, dtype=np.float32))
    out = tmp_path / "a.safetensors"
    arrays = ("--basis", tmp_path / "v.npy", "--mean", tmp_path / "mean.npy", "--singular-values", tmp_path / "s.npy")
    call(monkeypatch, "import-alignment", *arrays, "--dim", 4, "--out", out)
    target, _ = load_alignment(out)
    assert target.alignment.svd.basis_.shape == (8, 4)
    assert target.alignment.svd.variance_[0] == 64


@pytest.mark.parametrize(
    ("data", "sentence"),
    [("absent", "error: there is no folder {data}\n"), ("empty", "error: {data} holds no images")],
)
def test_bad_folders_are_one_sentence_and_leave_nothing(
    data: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    folder = tmp_path / data
    with pytest.raises(SystemExit) as exit_:
        nets = "--teacher random:cifar/resnet20 --student cifar/resnet20"
        call(monkeypatch, "kdep", nets, "--data", folder, "--out", tmp_path / "run", *SMALL)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith(sentence.format(data=folder))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("view:weak-view", "--view.min-scale", 0), "view.min-scale is 0.0: it must lie in (0, 1]"),
        (("distance:kl-divergence", "--distance.temperature", -1), "--distance.temperature is -1.0"),
        (("--monitor.every", 0), "--monitor.every is 0: it must be at least 1"),
        (("--teacher.weight", 0), "--teacher.weight is (0.0,): weights must not be negative"),
        (
            ("--teacher.weight", "nan"),
            "--teacher.weight is (nan,): weights must not be negative, infinite, nor all zero",
        ),
        (("view:kdep-view", "--view.lighting", -1), "--view.lighting is -1.0: it must be at least 0"),
        (
            ("alignment:svd-variance-matching", "--alignment.low", "nan"),
            "--alignment.low is nan: it must be at least 0",
        ),
        (("--epochs", 0), "--epochs is 0: it must be at least 1"),
        (("--teacher",), "--teacher is empty: pass at least one"),
        (("--student",), "--student is empty: pass at least one"),
    ],
)
def test_a_bad_value_names_its_flag_and_leaves_nothing(
    words: tuple,
    flag: str,
    unlabelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = ("--data", unlabelled, "--out", tmp_path / "run")
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, "kdep", "--teacher", "t", "--student", "s", *paths, *words)
    assert exit_.value.code == 2
    assert flag in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("teacher", ["timm/resnet81", "torchvision/resnet8"])
def test_an_unknown_teacher_answers_with_the_closest_names(
    teacher: str, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        nets = f"--teacher {teacher} --student cifar/resnet20 --batch-size 32"
        call(monkeypatch, "kdep", nets, "--data", unlabelled, "--out", tmp_path / "run", *SMALL)
    assert f"{teacher.split('/')[0]}/resnet" in capsys.readouterr().err.split("closest names are")[1]


def test_help_shows_defaults_with_their_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, "kdep", "--help")
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("He et al., CVPR 2022", "--teacher NAME|DIR", "(default: 512)", "Input side in pixels"):
        assert words in text


@pytest.mark.parametrize(
    ("command", "flag"),
    [("kdep", "view:kdep-view --view"), ("kdep", "teacher-view:weak-view --teacher-view"), ("fit-alignment", "--view")],
)
def test_a_bad_view_is_one_sentence_with_a_flag_that_exists(
    command: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--student", "s"] if command == "kdep" else ["--dim", 4]
    paths = ("--data", tmp_path / "absent", "--out", tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, command, "--teacher", "t", *words, *paths, *f"{flag}.min-scale 2.0".split())
    assert stop.value.code == 2
    sentence = f"error: {flag.split()[-1]}.min-scale is 2.0: it must lie in (0, 1]\n"
    assert capsys.readouterr().err == sentence
