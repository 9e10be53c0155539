"""The page of the tour: its sections, from results.json and the pictures that the runs have left."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from lanes import Lanes
from report import Curve, Page, Picture, Section, Table, draw_curves, write_page
from stillroom.backbone import Results, read_labelled, read_results, read_unlabelled
from stillroom.backbone.run_files import read_metrics
from stillroom.backbone.spec import Licence
from tour import NEIGHBOURS, Tour, nets_of
from tour_results import AGREEMENT, AGREEMENT_METRIC, TASKS, checkpoint_manifest, table_of, write_tour_results

PAGE = "index.html"
PROBED = {"random": "random weights", "student": "the student"}
"""Whose maps are probed: role -> name."""


def write_toy_page(tour: Tour, lanes: Lanes, seconds: float) -> Path:
    """Write results.json and the page of a tour of the toy world; returns the page.

    Args:
        tour: its settings.
        lanes: that ran its steps.
        seconds: from the first step to the last.
    """
    results = write_tour_results(tour, lanes, seconds)
    out, (student, teacher) = tour.out, (results.extra["nets"][role] for role in ("student", "teacher"))
    bank, queries = (read_results(out / "knn-shapes-student").datasets[part].count for part in ("train", "test"))
    sections = (
        Section(
            title="Results",
            text=(
                f"{teacher}, trained on ImageNet, taught {student} on images without labels. The supervised twin is "
                "the same net, trained with labels for as many steps on as many images. k-NN is measured on shapes and "
                "textures that none of the twin's images shows; the student's images show them, without labels. "
                "Segmentation and detection are measured of random weights and of the student alone, for time. One "
                "seed.",
            ),
            tables=(table_of(results),),
        ),
        Section(
            title="Nearest neighbours",
            text=(f"k-NN of frozen features, k = {NEIGHBOURS}: {bank} labelled images, {queries} to classify.",),
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
        *closing(tour, lanes, results, "The toy world is drawn on this machine: nothing restricts its images."),
    )
    big, small = (results.extra["cost"][role]["parameters"] for role in ("teacher", "student"))
    lead = f"The teacher has {big / small:.0f} times as many weights as the student.{reached(results)}"
    page = Page(title=f"{student} distilled from {teacher}", lead=lead, sections=sections, made_by=origin(results))
    write_page(out / PAGE, page)
    return out / PAGE


def write_own_page(tour: Tour, lanes: Lanes, seconds: float) -> Path:
    """Write results.json and the page of a tour of one's own images; see `write_toy_page`."""
    results = write_tour_results(tour, lanes, seconds)
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
        if not tour.is_split:
            text += " Each is classified by the others. A linear probe needs them in train/ and val/."
        pictures = (
            *(embedding(out / f"knn-{role}", f"the {role}") for role in ("teacher", "student")),
            neighbour_sheet(out / "knn-student", "your labelled images"),
        )
    licence = "None was given for your images: --data-licence." if tour.data_licence is None else tour.data_licence
    sections = (
        Section(title="Results", text=counted(tour), tables=(table_of(results),)),
        Section(
            title="Nearest neighbours",
            text=(text,),
            pictures=pictures,
            commands=commands(lanes, "teacher", "student", "features-", AGREEMENT, "knn-", "linear-"),
        ),
        learning_curves(out, {"student: distance to target": {"distilled": out / "student"}}),
        *closing(tour, lanes, results, f"Licence of the images: {licence}"),
    )
    lead = f"{teacher} taught {student} on the images in {tour.images}, without labels."
    page = Page(title=f"{student} distilled from {teacher}", lead=lead, sections=sections, made_by=origin(results))
    write_page(out / PAGE, page)
    return out / PAGE


def reached(results: Results) -> str:
    """Where the student stands between random weights and its teacher; nothing where the teacher does not lead."""
    shares = {}
    for task in TASKS:
        low, student, high = (results.metrics[f"{role}/knn-{task}"] for role in ("random", "student", "teacher"))
        if high <= low:
            return ""
        shares[task] = f"{100 * (student - low) / (high - low):.0f} % on new {task}"
    return f" Of its lead over random weights in k-NN accuracy the student has {' and '.join(shares.values())}."


def counted(tour: Tour) -> tuple[str, ...]:
    """How many images the student was trained on, what was left out, and which labelled ones it saw."""
    datasets = read_results(tour.out / "student").datasets
    trained, held_out = datasets["train"], datasets.get("held_out")
    sentence = f"The student was trained on {trained.count:,} images"
    if held_out is not None:
        sentence += f"; {held_out.count:,} more told it when to stop"
    if left := len((tour.out / "held-out.txt").read_text(encoding="utf-8").splitlines()):
        sentence += f"; {left:,} were kept for the comparison"
    sentences = [f"{sentence}."]
    if trained.broken:
        sentences.append(f"{trained.broken:,} could not be read and were left out.")
    if tour.labelled is not None and not tour.is_split:
        seen = {path.resolve() for path in read_unlabelled(tour.out / "train.txt").paths}
        both = sum(path.resolve() in seen for path in read_labelled(tour.labelled).paths)
        sentences.append(f"Of the labelled images {both:,} are among them: the student saw those without their labels.")
    return tuple(sentences)


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
        f"Of the teacher's nearest neighbours among the images that the student's run held out, the student has "
        f"{after:.1f} % beyond chance; {before:.1f} % before its first step."
    )
    return (sentence, *(f"Warning: {warning}." for warning in results.extra["warnings"]))


def closing(tour: Tour, lanes: Lanes, results: Results, about_data: str) -> tuple[Section, ...]:
    """The sections at the end of every page: cost, time, licences, next steps."""
    names, costs = results.extra["nets"], results.extra["cost"]
    cost = Table(
        caption=f"One image in float32 on one thread of {results.extra['machine']}",
        header=("net", "input, px", "weights, million", "GMACs", "ms"),
        rows=tuple(
            (
                *(names[role], str(one["size"]), f"{one['parameters'] / 1e6:.2f}", f"{one['macs'] / 1e9:.3f}"),
                f"{one['milliseconds']:.1f}",
            )
            for role, one in costs.items()
        ),
    )
    beside = ", two at a time" if len(lanes.pipes) > 1 else ""
    spent = Table(
        caption=f"Seconds of each step{beside}", header=("step", "s"),
        rows=tuple((title, f"{seconds:.0f}") for title, seconds in results.extra["steps"].items()),
    )  # fmt: skip
    total = f"{results.seconds:.0f} s in all, after installation."
    if lanes.resumed:
        total = "An earlier tour had begun or done some steps: their seconds are those of their last run."
    student = checkpoint_manifest(nets_of(tour)["student"])
    licences = {
        "teacher": student.teacher.licence if student.teacher else Licence(),
        "student": student.backbone.licence,
    }
    licensed = Table(
        caption="As the student's manifest says",
        header=("weights of", "licence", "restrictions"),
        rows=tuple(
            (names[role], one.spdx, "; ".join(one.restrictions) or "none") for role, one in licences.items()
        ),
    )  # fmt: skip
    inherited = "A student inherits its teacher's licence, and the restrictions of its images."
    next_text = f"The student is {nets_of(tour)['student']}, a checkpoint that every tool takes."
    return (
        Section(title="Cost", tables=(cost,), commands=commands(lanes, "cost")),
        Section(title="Time", text=(total,), tables=(spent,)),
        Section(title="Licences", text=(inherited, about_data), tables=(licensed,)),
        Section(title="Next steps", text=(next_text,), commands=tuple(("", one) for one in next_commands(tour))),
    )


def commands(lanes: Lanes, *names: str) -> tuple[tuple[str, str], ...]:
    """Title and command of the steps with one of these names; a name that ends in a dash begins several."""
    return tuple(
        (step.title, step.command)
        for step in lanes.steps
        if any(step.name == name or (name.endswith("-") and step.name.startswith(name)) for name in names)
    )


def next_commands(tour: Tour) -> tuple[str, ...]:
    """Three commands to go on with."""
    tool, student = ".venv/bin/python tools", shlex.quote(nets_of(tour)["student"])
    evaluate = f"{tool}/eval_ssl.py knn --checkpoint {student} --train YOUR_LABELLED/train --test YOUR_LABELLED/val"
    return (
        "bash tools/quickstart.sh --images YOUR_IMAGES --out runs/report"
        if tour.images is None
        else f"{evaluate} --out runs/knn",
        f"{tool}/cls_transfer.py finetune --checkpoint {student} --train YOUR_LABELLED/train --test YOUR_LABELLED/val "
        "--out runs/finetuned",
        f"{tool}/checkpoint.py export {student} --to onnx --out student.onnx",
    )


def origin(results: Results) -> str:
    """What made the page."""
    made = results.made_by
    commit = f"commit {made.commit[:12]}" if made.commit else "no commit"
    return f"bash tools/quickstart.sh, {commit}, torch {made.torch}, {made.date[:10]}"
