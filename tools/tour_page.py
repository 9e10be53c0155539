"""The page of the tour: its sections, from results.json and the pictures that the runs have left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lanes import Lanes
from report import Curve, Page, Picture, Section, Table, draw_curves, write_page
from stillroom.backbone import Results, read_results
from stillroom.backbone.names import is_checkpoint
from stillroom.backbone.run_files import read_metrics
from stillroom.backbone.spec import Licence
from tour_results import (
    AGREEMENT,
    AGREEMENT_METRIC,
    NEIGHBOURS,
    TASKS,
    checkpoint_manifest,
    table_of,
    write_tour_results,
)

PAGE = "index.html"
PROBED = {"random": "random weights", "student": "the student"}
"""Whose maps are probed: role -> name."""


def write_toy_page(tour: Any, nets: Mapping[str, str], lanes: Lanes, seconds: float) -> Path:
    """Write results.json and the page of a tour of the toy world; returns the page.

    Args:
        tour: its settings.
        nets: role -> checkpoint directory or name.
        lanes: that ran its steps.
        seconds: from the first step to the last.
    """
    results = write_tour_results(tour, nets, lanes, seconds)
    out, (student, teacher) = tour.out, (results.extra["nets"][role] for role in ("student", "teacher"))
    reached = " and ".join(f"{100 * progress(results, f'knn-{task}'):.0f} % on new {task}" for task in TASKS)
    sections = (
        Section(
            title="Results",
            text=(
                f"{teacher}, trained on ImageNet, taught {student} on images without labels. The supervised twin is "
                "the same net, trained with labels for as many steps on as many images. k-NN is measured on shapes "
                "and textures that none of the twin's images shows. One seed.",
            ),
            tables=(table_of(results),),
        ),
        Section(
            title="Nearest neighbours",
            text=(f"k-NN of frozen features, k = {NEIGHBOURS}: 960 labelled images, 480 to classify, 8 classes.",),
            pictures=(
                *(neighbour_sheet(out / f"knn-{task}-student", f"new {task}") for task in TASKS),
                *(embedding(out / f"knn-textures-{role}", f"the {role}") for role in ("teacher", "student")),
            ),
            commands=commands(lanes, "draw", "teacher", "student", "supervised", "knn-"),
        ),
        Section(
            title="Segmentation",
            text=(
                "A linear classifier of each pixel on frozen maps. The mean over objects leaves the ground out, which "
                "random weights find too.",
            ),
            tables=(iou_table(out),),
            pictures=tuple(sheet(out / f"segmentation-{role}", name) for role, name in PROBED.items()),
            commands=commands(lanes, "segmentation-"),
        ),
        Section(
            title="Detection",
            text=("Faster R-CNN on frozen maps; AP is COCO's, over overlaps from 0.5 to 0.95.",),
            pictures=tuple(sheet(out / f"detection-{role}", name) for role, name in PROBED.items()),
            commands=commands(lanes, "detection-"),
        ),
        learning_curves(
            out,
            {
                "student: distance to target": {"distilled": out / "student"},
                "supervised twin: cross-entropy": {"supervised": out / "supervised"},
                "detectors: sum of losses": {name: out / f"detection-{role}" for role, name in PROBED.items()},
            },
        ),
        *closing(nets, lanes, results, "The toy world is drawn on this machine: nothing restricts its images."),
    )
    big, small = (results.extra["cost"][role]["parameters"] for role in ("teacher", "student"))
    lead = (
        f"The teacher has {big / small:.0f} times as many weights as the student. Of its lead over random weights in "
        f"k-NN accuracy the student has {reached}."
    )
    page = Page(title=f"{student} distilled from {teacher}", lead=lead, sections=sections, made_by=origin(results))
    write_page(out / PAGE, page)
    return out / PAGE


def write_own_page(tour: Any, nets: Mapping[str, str], lanes: Lanes, seconds: float) -> Path:
    """Write results.json and the page of a tour of one's own images; see `write_toy_page`."""
    results = write_tour_results(tour, nets, lanes, seconds)
    out, (student, teacher) = tour.out, (results.extra["nets"][role] for role in ("student", "teacher"))
    if tour.labelled is None:
        text = (
            "Images that the student was not trained on. Without labels the measure is neighbour agreement: of each "
            f"image's {NEIGHBOURS} nearest neighbours by the teacher, the share that is also among the student's, "
            "corrected for chance."
        )
        pictures = (
            *(
                Picture(
                    file=out / AGREEMENT / f"map-{role}.png", alt=f"Small images in a plane, by the {role}'s features.",
                    caption=f"Two principal components of the {role}'s features",
                )
                for role in ("teacher", "student")
            ),
            Picture(
                file=out / AGREEMENT / "neighbours.png", wide=True,
                alt="In each row an image, its five nearest neighbours by the teacher, and five by the student.",
                caption=f"Nearest neighbours; green frames: among the other net's {NEIGHBOURS} too",
            ),
        )  # fmt: skip
    else:
        text = f"Frozen features of the labelled images in {tour.labelled}."
        pictures = (
            *(embedding(out / f"knn-{role}", f"the {role}") for role in ("teacher", "student")),
            neighbour_sheet(out / "knn-student", "your labelled images"),
        )
    sections = (
        Section(title="Results", tables=(table_of(results),)),
        Section(
            title="Nearest neighbours",
            text=(text,),
            pictures=pictures,
            commands=commands(lanes, "teacher", "student", "features-", AGREEMENT, "knn-", "linear-"),
        ),
        learning_curves(out, {"student: distance to target": {"distilled": out / "student"}}),
        *closing(nets, lanes, results, "If your images have a licence that restricts what is trained on them, say so "
                 "by --data-licence of tools/distill.py."),
    )  # fmt: skip
    lead = f"{teacher} taught {student} on the images in {tour.images}, without labels."
    page = Page(title=f"{student} distilled from {teacher}", lead=lead, sections=sections, made_by=origin(results))
    write_page(out / PAGE, page)
    return out / PAGE


def progress(results: Results, measure: str) -> float:
    """Where the student stands between random weights, 0, and its teacher, 1."""
    low, student, high = (results.metrics[f"{role}/{measure}"] for role in ("random", "student", "teacher"))
    return (student - low) / (high - low)


# --- pictures and tables ----------------------------------------------------------------------------------------------


def neighbour_sheet(run: Path, what: str) -> Picture:
    """The sheet of the student's k-NN run."""
    return Picture(
        file=run / "figures" / "neighbours.png", wide=True,
        alt="In each row an image and its ten nearest neighbours by the student; green frames: the same class.",
        caption=f"The student's nearest neighbours among {what}; green: same class, red: another",
    )  # fmt: skip


def embedding(run: Path, whose: str) -> Picture:
    """The plane of a k-NN run."""
    return Picture(
        file=run / "figures" / "embedding.png",
        alt=f"Dots and small images in a plane, coloured by class: features of {whose}.",
        caption=f"Two principal components of the features of {whose}, by class",
    )


def sheet(run: Path, whose: str) -> Picture:
    """The sheet of a segmentation or a detection."""
    return Picture(
        file=run / "figures" / "sheet.png", wide=True,
        alt=f"Scenes, the truth, and what was found on the maps of {whose}.", caption=f"On the maps of {whose}",
    )  # fmt: skip


def iou_table(out: Path) -> Table:
    """IoU of each class on each net's maps."""
    found = {name: read_results(out / f"segmentation-{role}").extra["iou_per_class"] for role, name in PROBED.items()}
    classes = tuple(found[PROBED["student"]])
    rows = tuple((name, *(f"{100 * values[one]:.1f}" for one in classes)) for name, values in found.items())
    return Table(caption="IoU of each class, %", header=("maps of", *classes), rows=rows)


def learning_curves(out: Path, panels: Mapping[str, Mapping[str, Path]]) -> Section:
    """The section of learning curves, from the runs' metrics.jsonl, with what the student's run says of itself.

    Args:
        out: folder of the picture, and of the student's run.
        panels: title -> name of a curve -> run directory; the loss is drawn.
    """
    curves = {title: {name: curve(run, "loss") for name, run in runs.items()} for title, runs in panels.items()}
    if agreement := curve(out / "student", AGREEMENT_METRIC):
        curves["student: neighbour agreement"] = {"distilled": agreement}
    draw_curves(out / "curves.png", curves, "step")
    ends = [
        f"{title}, {name}: from {points[0][1]:.2f} to {points[-1][1]:.2f}"
        for title, lines in curves.items()
        for name, points in lines.items()
    ]
    caption = "Training losses, means since the last point; agreement with the teacher on held-out images"
    picture = Picture(file=out / "curves.png", alt="; ".join(ends), caption=caption, wide=True)
    return Section(title="Learning curves", text=learned(out / "student"), pictures=(picture,))


def curve(run: Path, metric: str) -> Curve:
    """The values of a metric over the steps of a run."""
    return [(row["step"], row[metric]) for row in read_metrics(run) if metric in row]


def learned(run: Path) -> tuple[str, ...]:
    """Whether the student learned, by the figure that needs no labels, and the warnings of its run."""
    results = read_results(run)
    if AGREEMENT_METRIC not in results.metrics:
        return ()
    before, after = (100 * found[AGREEMENT_METRIC] for found in (results.extra["untrained"], results.metrics))
    sentence = (
        f"Of the teacher's nearest neighbours among held-out images the student has {after:.1f} % beyond chance; "
        f"{before:.1f} % before its first step."
    )
    return (sentence, *(f"Warning: {warning}." for warning in results.extra["warnings"]))


def closing(nets: Mapping[str, str], lanes: Lanes, results: Results, about_data: str) -> tuple[Section, ...]:
    """The sections at the end of every page: cost, time, licences, next steps."""
    names, costs = results.extra["nets"], results.extra["cost"]
    cost = Table(
        caption=f"One image in float32 on {results.extra['machine']}, {costs['student']['threads']} threads",
        header=("net", "input, px", "weights, million", "GMACs", "ms"),
        rows=tuple(
            (
                *(names[role], str(one["size"]), f"{one['parameters'] / 1e6:.2f}", f"{one['macs'] / 1e9:.3f}"),
                f"{one['milliseconds']:.1f}",
            )
            for role, one in costs.items()
        ),
    )
    beside = ", in two lanes beside each other" if len(lanes.pipes) > 1 else ""
    spent = Table(
        caption=f"Seconds of each step{beside}", header=("step", "s"),
        rows=tuple((title, f"{seconds:.0f}") for title, seconds in results.extra["steps"].items()),
    )  # fmt: skip
    total = "Some steps were done before." if lanes.kept else f"{results.seconds:.0f} s in all, after installation."
    licences = {role: licence_of(nets[role]) for role in ("teacher", "student")}
    licensed = Table(
        caption="As the checkpoints' manifests say",
        header=("weights of", "licence", "restrictions"),
        rows=tuple(
            (names[role], one.spdx, "; ".join(one.restrictions) or "none") for role, one in licences.items()
        ),
    )  # fmt: skip
    inherited = "A student inherits its teacher's licence, and the restrictions of its images."
    return (
        Section(title="Cost", tables=(cost,), commands=commands(lanes, "cost")),
        Section(title="Time", text=(total,), tables=(spent,)),
        Section(title="Licences", text=(inherited, about_data), tables=(licensed,)),
        Section(title="Next steps", text=(f"The student is {nets['student']}, a checkpoint that every tool takes.",),
                commands=next_commands(nets["student"])),
    )  # fmt: skip


def licence_of(net: str) -> Licence:
    """The licence in a checkpoint's manifest; not known for a name."""
    return checkpoint_manifest(net).backbone.licence if is_checkpoint(net) else Licence()


def commands(lanes: Lanes, *names: str) -> tuple[str, ...]:
    """The commands of the steps with one of these names; a name that ends in a dash is the beginning of several."""
    return tuple(
        step.command
        for step in lanes.steps
        if any(step.name == name or (name.endswith("-") and step.name.startswith(name)) for name in names)
    )


def next_commands(student: str) -> tuple[str, ...]:
    """Three commands to go on with."""
    tool = ".venv/bin/python tools"
    return (
        "bash tools/quickstart.sh --images YOUR_IMAGES --out runs/mine",
        f"{tool}/cls_transfer.py finetune --checkpoint {student} --train YOUR_LABELLED/train --test YOUR_LABELLED/val "
        "--out runs/finetuned",
        f"{tool}/checkpoint.py export {student} --to onnx --out student.onnx",
    )


def origin(results: Results) -> str:
    """What made the page."""
    made = results.made_by
    commit = f"commit {made.commit[:12]}" if made.commit else "no commit"
    return f"bash tools/quickstart.sh, {commit}, torch {made.torch}, {made.date[:10]}"
