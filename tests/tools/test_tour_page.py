"""The tour's table and page, from handwritten runs; the published table, from the stored run."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from html_pages import Read, refuse_outside
from stillroom.backbone import build_backbone, save_checkpoint
from stillroom.backbone.manifest import MadeBy
from stillroom.runs import Results, format_table, read_results, write_results
from stillroom.runs.results import CheckpointRecord, DatasetRecord

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import tour_page
from lanes import Lanes, Step, open_lanes, record_of
from quickstart import toy_steps, user_steps
from tour import Tour
from tour_results import collect_metrics, summary, table_of

ROOT = Path(__file__).parents[2]
TOY = Tour(teacher_size=96, student="cifar/resnet20", student_size=32, epochs=6)


def test_readme_and_results_md_show_the_table_of_the_stored_run() -> None:
    table = table_of(read_results(ROOT / "docs" / "studies" / "quickstart"))
    published = format_table(list(table.header), [list(row) for row in table.rows])
    for page in ("README.md", "docs/results.md"):
        assert published in (ROOT / page).read_text(encoding="utf-8"), f"{page} does not hold:\n{published}"


CLASSES = ("background", "arrow", "gear")


def write_run(run: Path, metrics: dict[str, float], **extra: Any) -> None:
    """Write the files of a run that the page reads: results, losses, images."""
    (run / "figures").mkdir(parents=True)
    for name in ("neighbours", "embedding", "sheet"):
        Image.new("RGB", (8, 8), "red").save(run / "figures" / f"{name}.png")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 0.5}\n')
    made = MadeBy(package="p", version="1", commit=None, command="c", torch="t", date="2026-01-01", config={})
    checkpoint = CheckpointRecord(path="x", sha256="0", method="m")
    datasets = {
        name: DatasetRecord(path="x", count=count, fingerprint="0", broken=broken)
        for name, count, broken in (("train", 960, 3), ("test", 480, 0), ("held_out", 64, 0))
    }
    results = Results(
        task="t",
        protocol="p",
        datasets=datasets,
        checkpoint=checkpoint,
        metrics=metrics,
        seed=0,
        seconds=1.0,
        made_by=made,
        extra=extra,
    )
    write_results(run, results)


def write_steps(tour: Tour, steps: list[Step]) -> Lanes:
    """Write records of steps without running them, and the outputs of every tour: student's run, teacher, costs."""
    with open_lanes(tour.out / "steps", 1, summary) as lanes:
        lanes.steps = steps
    for step in steps:
        record_of(lanes.folder, step).write_text(json.dumps({"command": step.command, "seconds": 2.5}))
    extra = {"untrained": {"neighbour_agreement": 0.05}, "warnings": ["it learned almost nothing"]}
    write_run(tour.out / "student", {"neighbour_agreement": 0.06}, **extra)
    with (tour.out / "student" / "metrics.jsonl").open("a") as opened:
        opened.write('{"step": 2, "neighbour_agreement": 0.06}\n')
    for path, name in (("student/student", "cifar/resnet20"), ("teacher", "torchvision/mobilenet_v3_small")):
        save_checkpoint(tour.out / path, build_backbone(name), method="kdep", package="stillroom-distill")
    shutil.copytree(tour.out / "student" / "student", tour.out / "student" / "student-best")
    costs = [
        {"net": "x", "size": size, "parameters": p, "macs": m, "milliseconds": ms, "threads": 1}
        for size, p, m, ms in ((96, 3_000_000, 71_000_000, 9.06), (32, 250_000, 41_000_000, 3.04))
    ]
    (tour.out / "cost.json").write_text(json.dumps(costs))
    return lanes


@pytest.fixture
def toured(tmp_path: Path) -> tuple[Tour, Lanes]:
    """A tour of the toy world with handwritten runs."""
    tour = replace(TOY, out=tmp_path / "tour")
    lanes = write_steps(tour, toy_steps(tour))
    write_run(tour.out / "supervised", {})
    accuracy = {"random": 0.25, "supervised": 0.375, "student": 0.5, "teacher": 0.75}
    for role, value in accuracy.items():
        for task in ("shapes", "textures"):
            write_run(tour.out / f"knn-{task}-{role}", {"top1_k10": value})
    for role, value in (("random", 0.01), ("student", 0.3)):
        ious = dict(zip(CLASSES, (0.9, value, 3 * value), strict=True))
        write_run(tour.out / f"segmentation-{role}", {"mIoU_foreground": 2 * value}, iou_per_class=ious)
        write_run(tour.out / f"detection-{role}", {"AP": value})
    return tour, lanes


def by_name(lanes: Lanes) -> dict[str, Step]:
    return {step.name: step for step in lanes.steps}


ROWS = (
    ("resnet20, random weights", "25.0", "25.0", "2.0", "1.0", "0.25", "0.041", "3.0"),
    ("resnet20, supervised", "37.5", "37.5", "-", "-", "0.25", "0.041", "3.0"),
    ("resnet20, distilled without labels", "50.0", "50.0", "60.0", "30.0", "0.25", "0.041", "3.0"),
    ("mobilenet_v3_small, the teacher", "75.0", "75.0", "-", "-", "3.00", "0.071", "9.1"),
)


def test_the_table_needs_results_json_only_and_shows_the_runs_numbers(toured: tuple[Tour, Lanes]) -> None:
    tour, lanes = toured
    metrics = collect_metrics(lanes.steps)
    assert metrics["student/segmentation"] == pytest.approx(0.6)  # mean of arrow and gear, without the background
    assert metrics["teacher/knn-shapes"] == 0.75 and "teacher/detection" not in metrics
    tour_page.write_toy_page(tour, lanes, 123.44)
    results = read_results(tour.out)
    assert (results.metrics, results.seconds, results.protocol) == (metrics, 123.4, "quickstart/v2")
    assert table_of(results).rows == ROWS
    assert len(table_of(results).header) == len(ROWS[0])


def test_the_page_shows_every_table_and_image_and_every_command(toured: tuple[Tour, Lanes]) -> None:
    tour, lanes = toured
    page = tour_page.write_toy_page(tour, lanes, 123.44)
    read = Read(page.read_text(encoding="utf-8"))
    refuse_outside(read)
    assert read.text("h2") == [
        "Results",
        "Nearest neighbours",
        "Segmentation",
        "Detection",
        "Learning curves",
        "Cost",
        "Time",
        "Licences",
        "Next steps",
    ]
    cells = [words for tag, words in read.texts if tag in ("th", "td")]
    assert all(cell in cells for row in ROWS for cell in row)
    assert {"NOASSERTION", "none", "96", "2"} <= set(cells) and "90.0" in cells  # licences, cost, seconds, an IoU
    assert len(read.all("table")) == len(read.all("caption")) == 5
    assert len(read.all("img")) == 9 and all(image["alt"] for image in read.all("img"))
    assert set(read.text("code")) == {step.command for step in lanes.steps} | set(tour_page.next_commands(tour))
    assert set(read.text("h3")) == {step.title for step in lanes.steps}
    sentences = read.text("p")
    assert (
        "Neighbour agreement with the teacher on held-out images, corrected for chance: 6.0 %; 5.0 % before training."
    ) in sentences
    assert "Warning: it learned almost nothing." in sentences
    curves = next(image["alt"] for image in read.all("img") if "cross-entropy" in (image["alt"] or ""))
    assert "student: neighbour agreement, distilled: from 0.06 to 0.06" in (curves or "")
    lead = next(words for words in sentences if "times as many parameters" in words)
    assert "12 times" in lead and "recovers 50 % (new shapes) and 50 % (new textures) of the teacher's lead" in lead


def test_a_teacher_without_a_lead_over_random_weights_is_not_a_reference(toured: tuple[Tour, Lanes]) -> None:
    tour, lanes = toured
    shutil.rmtree(tour.out / "knn-shapes-teacher")
    write_run(tour.out / "knn-shapes-teacher", {"top1_k10": 0.25})
    read = Read(tour_page.write_toy_page(tour, lanes, 1.0).read_text(encoding="utf-8"))
    assert "The teacher has 12 times as many parameters as the student." in read.text("p")


@pytest.fixture
def user_tour(unlabelled: Path, tmp_path: Path) -> Tour:
    images = tmp_path / "images"
    for index in range(3):
        shutil.copytree(unlabelled, images / str(index))
    return replace(TOY, images=images, out=tmp_path / "own")


def test_the_page_of_unlabelled_user_images_shows_agreement_and_counts(user_tour: Tour) -> None:
    lanes = write_steps(user_tour, user_steps(user_tour))
    (user_tour.out / "neighbours").mkdir()
    for name in ("neighbours", "map-teacher", "map-student"):
        Image.new("RGB", (8, 8), "red").save(user_tour.out / "neighbours" / f"{name}.png")
    agreement = {
        str(user_tour.out / f"features-{role}"): value for role, value in (("student", 0.5), ("random", 0.125))
    }
    (user_tour.out / "neighbours" / "agreement.json").write_text(json.dumps({"agreement": agreement}))
    page = tour_page.write_user_page(user_tour, lanes, 12.0)
    assert read_results(user_tour.out).metrics == {"student/neighbours": 0.5, "random/neighbours": 0.125}
    assert summary(by_name(lanes)["neighbours"]) == "agreement of the 10 nearest neighbours, % 50.0"
    read = Read(page.read_text(encoding="utf-8"))
    refuse_outside(read)
    sentences = read.text("p")
    assert (
        "The student was trained on 960 images; 64 more were held out to decide when to stop; 28 were reserved for the "
        "comparison." in sentences
    )
    assert "3 could not be read and were skipped." in sentences
    assert "Licence of the images: not given (--data-licence)." in sentences
    assert {"50.0", "12.5"} <= set(read.text("td"))
    assert set(read.text("code")) == {step.command for step in lanes.steps} | set(tour_page.next_commands(user_tour))


@pytest.mark.parametrize("is_split", [False, True])
def test_the_page_of_labelled_user_images_shows_accuracy_and_how_many_of_them_the_student_saw(
    user_tour: Tour, labelled: Callable[..., Path], tmp_path: Path, is_split: bool
) -> None:
    folder = labelled("split/train" if is_split else "split")
    if is_split:
        labelled("split/val", seed=1)
    assert user_tour.images is not None
    (user_tour.images / "seen.png").symlink_to(next(folder.rglob("*.png")))
    tour = replace(user_tour, labelled=tmp_path / "split", data_licence="MIT")
    lanes = write_steps(tour, user_steps(tour))
    for role, value in (("random", 0.25), ("student", 0.5), ("teacher", 0.75)):
        write_run(tour.out / f"knn-{role}", {"top1_k10": value})
        if is_split:
            write_run(tour.out / f"linear-{role}", {"top1": value + 0.125})
    read = Read(tour_page.write_user_page(tour, lanes, 12.0).read_text(encoding="utf-8"))
    assert {"25.0", "50.0", "75.0"} <= set(read.text("td"))
    assert ("linear probe, %" in read.text("th"), "62.5" in read.text("td")) == (is_split, is_split)
    text = " ".join(read.text("p"))
    seen = "They include 1 of the labelled images; the student saw those without their labels."
    assert (seen in text) == (not is_split)
    assert "Licence of the images: MIT" in text


def test_no_negative_agreement_is_shown(user_tour: Tour) -> None:
    lanes = write_steps(user_tour, user_steps(user_tour))
    folder = user_tour.out / "neighbours"
    folder.mkdir()
    for name in ("neighbours", "map-teacher", "map-student"):
        Image.new("RGB", (8, 8), "red").save(folder / f"{name}.png")
    agreement = {str(user_tour.out / f"features-{role}"): -0.094 for role in ("student", "random")}
    (folder / "agreement.json").write_text(json.dumps({"agreement": agreement}))
    shutil.rmtree(user_tour.out / "student" / "figures")
    write_run(
        user_tour.out / "student", {"neighbour_agreement": -0.03}, untrained={"neighbour_agreement": 0.05}, warnings=[]
    )
    read = Read(tour_page.write_user_page(user_tour, lanes, 12.0).read_text(encoding="utf-8"))
    assert read.text("td").count("0.0 (no better than chance)") == 2
    held_out = "on held-out images, corrected for chance: 0.0 % (no better than chance); 5.0 % before training."
    assert f"Neighbour agreement with the teacher {held_out}" in read.text("p")
    assert "-9.4" not in " ".join(words for _, words in read.texts)
    shown = summary(by_name(lanes)["neighbours"])
    assert shown == "agreement of the 10 nearest neighbours, % 0.0 (no better than chance)"


def test_the_footer_says_whether_the_code_had_uncommitted_changes(toured: tuple[Tour, Lanes]) -> None:
    tour, lanes = toured
    tour_page.write_toy_page(tour, lanes, 1.0)
    results = read_results(tour.out)
    texts = {"0123456789abcdef": "commit 0123456789ab, torch", None: "no commit, torch"}
    texts["0123456789abcdef+dirty"] = "commit 0123456789ab with uncommitted changes, torch"
    for commit, text in texts.items():
        made = replace(results.made_by, commit=commit)
        assert text in tour_page.origin(replace(results, made_by=made))


def test_the_line_of_a_step_shows_its_number(toured: tuple[Tour, Lanes]) -> None:
    steps = by_name(toured[1])
    assert summary(steps["knn-shapes-student"]) == "k-NN, new shapes, % 50.0"
    assert summary(steps["segmentation-student"]) == "segmentation, mIoU of objects, % 60.0"
    assert summary(steps["student"]) == "loss 2.00 to 0.50"
    assert summary(steps["teacher"]).endswith("tour/teacher")
