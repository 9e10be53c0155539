"""The tour: its commands, its budgets, its table and its page, without the minutes that it takes."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import tyro
from PIL import Image

from html_pages import Read, refuse_outside
from stillroom.backbone import Results, build_backbone, format_table, read_results, save_checkpoint, write_results
from stillroom.backbone.manifest import MadeBy
from stillroom.backbone.results import CheckpointRecord

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import tour_page
from lanes import Lanes, Step, open_lanes, record_of
from quickstart import Tour, check, hold_out, nets_of, own_steps, toy_steps
from tour_results import read_measures, summary, table_of

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
    for place in range(240):
        source = sorted(unlabelled.rglob("*.*"))[place % 90]
        (images / f"{place:03d}{source.suffix}").symlink_to(source)  # two of one file are two images here
    return replace(OWN, images=images, out=tmp_path / "runs")


def test_every_command_of_every_tour_parses(own: Tour, labelled: Callable[..., Path], tmp_path: Path) -> None:
    whole = labelled("train")
    split = tmp_path / "split"
    split.mkdir()
    (split / "train").symlink_to(whole)
    (split / "val").symlink_to(whole)
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


def test_the_next_commands_parse() -> None:
    quickstart, *others = tour_page.next_commands("runs/quickstart/student/student")
    interpreter, script, *words = shlex.split(quickstart)
    assert (interpreter, script) == ("bash", "tools/quickstart.sh")
    assert tyro.cli(Tour, args=words).images == Path("YOUR_IMAGES")
    assert all(parse(command) for command in others)


def test_the_table_of_readme_and_results_is_that_of_the_stored_run() -> None:
    table = table_of(read_results(ROOT / "docs" / "studies" / "quickstart"))
    published = format_table(list(table.header), [list(row) for row in table.rows])
    for page in ("README.md", "docs/results.md"):
        assert published in (ROOT / page).read_text(encoding="utf-8"), f"{page} does not hold:\n{published}"


def test_a_step_needs_earlier_ones_alone_and_the_cost_is_measured_last() -> None:
    steps = toy_steps(TOY)
    for place, step in enumerate(steps):
        assert set(step.needs) <= {earlier.name for earlier in steps[:place]}, step.name
    assert set(by_name(steps)["knn-shapes-student"].needs) == {"draw", "student"}
    assert set(steps[-1].needs) == {step.name for step in steps[:-1]}


def test_the_twin_takes_as_many_steps_over_as_many_images_as_the_student() -> None:
    steps = by_name(toy_steps(TOY))
    drawn, student, twin = (parse(steps[name].command) for name in ("draw", "student", "supervised"))
    assert drawn.num_unlabelled == drawn.num_train
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


def test_own_images_are_parted_once_for_all(own: Tour) -> None:
    train, held_out = ([line for line in file.read_text().splitlines()] for file in hold_out(own))
    assert (len(train), len(held_out)) == (216, 24)
    assert not set(train) & set(held_out)
    assert [file.read_text().splitlines() for file in hold_out(own)] == [train, held_out]
    assert hold_out(replace(own, seed=1))[1].read_text().splitlines() != held_out


def test_settings_that_cannot_work_are_refused(own: Tour, unlabelled: Path) -> None:
    few = r"holds 96 images, a tenth of them is held out to compare 10 nearest neighbours: give at least 210, or --lab"
    with pytest.raises(ValueError, match=few):
        hold_out(replace(own, images=unlabelled))
    with pytest.raises(ValueError, match="--labelled goes with your own images: pass --images too"):
        check(replace(TOY, labelled=Path("x")))
    with pytest.raises(ValueError, match="--epochs is 0: it must be at least 1"):
        check(replace(TOY, epochs=0))
    check(TOY)


# --- the table and the page, from runs written by hand ----------------------------------------------------------------

CLASSES = ("background", "arrow", "gear")


def write_run(run: Path, metrics: dict[str, float], **extra: Any) -> None:
    """What a run leaves that the page reads: results, losses, images."""
    (run / "figures").mkdir(parents=True)
    for name in ("neighbours", "embedding", "sheet"):
        Image.new("RGB", (8, 8), "red").save(run / "figures" / f"{name}.png")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 0.5}\n')
    made = MadeBy(package="p", version="1", commit=None, command="c", torch="t", date="2026-01-01", config={})
    checkpoint = CheckpointRecord(path="x", sha256="0", method="m")
    results = Results(task="t", protocol="p", datasets={}, checkpoint=checkpoint, metrics=metrics, seed=0, seconds=1.0,
                      made_by=made, extra=extra)  # fmt: skip
    write_results(run, results)


@pytest.fixture
def toured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tour, Lanes]:
    """A tour of the toy world whose runs were written by hand."""
    tour = replace(TOY, out=tmp_path / "tour")
    with open_lanes(tour.out / "steps", 1, summary) as lanes:
        lanes.steps = toy_steps(tour)
    for step in lanes.steps:
        record_of(lanes.folder, step).write_text(json.dumps({"command": step.command, "seconds": 2.5}))
    accuracy = {"random": 0.25, "supervised": 0.375, "student": 0.5, "teacher": 0.75}
    for role, value in accuracy.items():
        for task in ("shapes", "textures"):
            write_run(tour.out / f"knn-{task}-{role}", {"top1_k10": value})
    for role, value in (("random", 0.01), ("student", 0.3)):
        ious = dict(zip(CLASSES, (0.9, value, 3 * value), strict=True))
        write_run(tour.out / f"segmentation-{role}", {"mIoU": 0.5}, iou_per_class=ious)
        write_run(tour.out / f"detection-{role}", {"AP": value})
    write_run(tour.out / "supervised", {})
    said = {"untrained": {"neighbour_agreement": 0.05}, "warnings": ["it learned about nothing"]}
    write_run(tour.out / "student", {"neighbour_agreement": 0.06}, **said)
    with (tour.out / "student" / "metrics.jsonl").open("a") as opened:
        opened.write('{"step": 2, "neighbour_agreement": 0.06}\n')
    for name, checkpoint in (("student", "student"), ("supervised", "checkpoint")):
        net = build_backbone("cifar/resnet20")
        save_checkpoint(tour.out / name / checkpoint, net, method="kdep", package="stillroom-distill")
    teacher = build_backbone("torchvision/mobilenet_v3_small")
    save_checkpoint(tour.out / "teacher", teacher, method="import", package="stillroom-backbone")
    costs = [
        {"net": "x", "size": size, "parameters": p, "macs": m, "milliseconds": ms, "threads": 2}
        for size, p, m, ms in ((96, 3_000_000, 71_000_000, 9.06), (32, 250_000, 41_000_000, 3.04))
    ]
    (tour.out / "cost.json").write_text(json.dumps(costs))
    return tour, lanes


ROWS = (
    ("resnet20, random weights", "25.0", "25.0", "2.0", "1.0", "0.25", "0.041", "3.0"),
    ("resnet20, supervised", "37.5", "37.5", "-", "-", "0.25", "0.041", "3.0"),
    ("resnet20, distilled without labels", "50.0", "50.0", "60.0", "30.0", "0.25", "0.041", "3.0"),
    ("mobilenet_v3_small, the teacher", "75.0", "75.0", "-", "-", "3.00", "0.071", "9.1"),
)


def test_the_table_is_made_of_the_runs_numbers_and_of_results_json_alone(toured: tuple[Tour, Lanes]) -> None:
    tour, lanes = toured
    found = read_measures(tour.out, nets_of(tour))
    assert found["student/segmentation"] == pytest.approx(0.6)  # of arrow and gear, without the ground
    assert found["teacher/knn-shapes"] == 0.75 and "teacher/detection" not in found
    tour_page.write_toy_page(tour, nets_of(tour), lanes, 123.44)
    results = read_results(tour.out)
    assert (results.metrics, results.seconds, results.protocol) == (found, 123.4, "quickstart/v2")
    assert table_of(results).rows == ROWS
    assert len(table_of(results).header) == len(ROWS[0])


def test_the_page_shows_every_table_and_image_and_every_command(toured: tuple[Tour, Lanes]) -> None:
    tour, lanes = toured
    page = tour_page.write_toy_page(tour, nets_of(tour), lanes, 123.44)
    read = Read(page.read_text(encoding="utf-8"))
    refuse_outside(read)
    assert read.text("h2") == [
        "Results", "Nearest neighbours", "Segmentation", "Detection", "Learning curves", "Cost", "Time", "Licences",
        "Next steps",
    ]  # fmt: skip
    cells = [words for tag, words in read.texts if tag in ("th", "td")]
    assert all(cell in cells for row in ROWS for cell in row)
    assert {"NOASSERTION", "none", "96", "2"} <= set(cells) and "90.0" in cells  # licences, cost, seconds, an IoU
    assert len(read.all("table")) == len(read.all("caption")) == 5
    assert len(read.all("img")) == 9 and all(image["alt"] for image in read.all("img"))
    assert set(read.text("code")) == {step.command for step in lanes.steps} | set(
        tour_page.next_commands(nets_of(tour)["student"])
    )
    sentences = read.text("p")
    assert (
        "Of the teacher's nearest neighbours among held-out images the student has 6.0 % beyond chance; 5.0 % before "
        "its first step."
    ) in sentences
    assert "Warning: it learned about nothing." in sentences
    curves = next(image["alt"] for image in read.all("img") if "cross-entropy" in (image["alt"] or ""))
    assert "student: neighbour agreement, distilled: from 0.06 to 0.06" in (curves or "")
    lead = next(words for words in sentences if "times as many weights" in words)
    assert "12 times" in lead and "50 % on new shapes and 50 % on new textures" in lead


def test_the_line_of_a_step_holds_its_number(toured: tuple[Tour, Lanes]) -> None:
    steps = {step.name: step for step in toured[1].steps}
    assert summary(steps["knn-shapes-student"]) == "k-NN, new shapes, % 50.0"
    assert summary(steps["segmentation-student"]) == "segmentation, mIoU of objects, % 60.0"
    assert summary(steps["student"]) == "loss 2.00 to 0.50"
    assert summary(steps["teacher"]).endswith("tour/teacher")
