"""The page of the tour: its sections, made from results.json and the figures of the runs."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from lanes import Lanes
from neighbours import agreement_text
from report import Curve, Page, Picture, Section, Table, draw_curves, write_page
from stillroom.backbone.spec import Licence
from stillroom.images import read_labelled, read_unlabelled
from stillroom.runs import Results, read_results
from stillroom.runs.run_files import read_metrics
from tour import NEIGHBOURS, Tour, nets_of
from tour_results import AGREEMENT, AGREEMENT_METRIC, TASKS, checkpoint_manifest, table_of, write_tour_results

PAGE = "index.html"
PROBED = {"random": "random weights", "student": "the student"}
"""Nets whose feature maps are probed: role -> name."""


def write_toy_page(tour: Tour, lanes: Lanes, seconds: float) -> Path:
    """Write results.json and the page of a tour of the toy world; returns the page.

    Args:
        tour: its settings.
        lanes: the lanes that ran its steps.
        seconds: duration from the first step to the last.
    """
    results = write_tour_results(tour, lanes, seconds)
    out, (student, teacher) = tour.out, (results.extra["nets"][role] for role in ("student", "teacher"))
    bank, queries = (read_results(out / "knn-shapes-student").datasets[part].count for part in ("train", "test"))
    sections = (
        Section(
            title="Results",
            text=(
                f"{student} was distilled from {teacher}, trained on ImageNet, on images without labels. The "
                "supervised twin is the same net, trained with labels for as many steps on as many images. k-NN uses "
                "shapes and textures that are in none of the twin's images; they are in the student's images, without "
                "labels. Segmentation and detection are measured for random weights and the student only, to save "
                "time. One seed.",
            ),
            tables=(table_of(results),),
        ),
        Section(
            title="Nearest neighbours",
            text=(f"k-NN on frozen features, k = {NEIGHBOURS}: {bank} labelled images, {queries} queries.",),
            pictures=(
                *(neighbour_sheet(out / f"knn-{task}-student", f"new {task}") for task in TASKS),
                *(embedding(out / f"knn-textures-{role}", f"the {role}") for role in ("teacher", "student")),
            ),
            commands=commands(lanes, "draw", "teacher", "student", "supervised", "knn-"),
        ),
        Section(
            title="Segmentation",
            text=(
                "A linear classifier of each pixel on frozen feature maps. The mean over objects excludes the "
                "background, which random weights find too.",
            ),
            tables=(iou_table(out),),
            pictures=tuple(sheet(out / f"segmentation-{role}", name) for role, name in PROBED.items()),
            commands=commands(lanes, "segmentation-"),
        ),
        Section(
            title="Detection",
            text=("Faster R-CNN on frozen feature maps; AP is COCO's, over IoU thresholds from 0.5 to 0.95.",),
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
        *closing(tour, lanes, results, "The toy world is drawn on this machine: its images have no restrictions."),
    )
    big, small = (results.extra["cost"][role]["parameters"] for role in ("teacher", "student"))
    lead = f"The teacher has {big / small:.0f} times as many parameters as the student.{recovered(results)}"
    page = Page(title=f"{student} distilled from {teacher}", lead=lead, sections=sections, made_by=origin(results))
    write_page(out / PAGE, page)
    return out / PAGE


def write_user_page(tour: Tour, lanes: Lanes, seconds: float) -> Path:
    """Write results.json and the page of a tour of the user's images; see `write_toy_page`."""
    results = write_tour_results(tour, lanes, seconds)
    out, (student, teacher) = tour.out, (results.extra["nets"][role] for role in ("student", "teacher"))
    if tour.labelled is None:
        text = (
            "Images that the student was not trained on. Without labels the metric is neighbour agreement: of each "
            f"image's {NEIGHBOURS} nearest neighbours by the teacher's features, the share that is also among the "
            "student's, corrected for chance."
        )
        pictures = (
            *(
                Picture(
                    file=out / AGREEMENT / f"map-{role}.png",
                    alt=f"Thumbnails in a plane, by the {role}'s features.",
                    caption=f"Two principal components of the {role}'s features",
                )
                for role in ("teacher", "student")
            ),
            Picture(
                file=out / AGREEMENT / "neighbours.png",
                wide=True,
                alt="In each row an image, its five nearest neighbours by the teacher and its five by the student.",
                caption=f"Nearest neighbours; green frame: also among the other net's {NEIGHBOURS}",
            ),
        )
    else:
        text = f"Frozen features of the labelled images in {tour.labelled}."
        if not tour.is_split:
            text += " Each image is classified by the others. For a linear probe, split them into train/ and val/."
        pictures = (
            *(embedding(out / f"knn-{role}", f"the {role}") for role in ("teacher", "student")),
            neighbour_sheet(out / "knn-student", "your labelled images"),
        )
    licence = "not given (--data-licence)." if tour.data_licence is None else tour.data_licence
    sections = (
        Section(title="Results", text=describe_images(tour), tables=(table_of(results),)),
        Section(
            title="Nearest neighbours",
            text=(text,),
            pictures=pictures,
            commands=commands(lanes, "teacher", "student", "features-", AGREEMENT, "knn-", "linear-"),
        ),
        learning_curves(out, {"student: distance to target": {"distilled": out / "student"}}),
        *closing(tour, lanes, results, f"Licence of the images: {licence}"),
    )
    lead = f"{student} was distilled from {teacher} on the images in {tour.images}, without labels."
    page = Page(title=f"{student} distilled from {teacher}", lead=lead, sections=sections, made_by=origin(results))
    write_page(out / PAGE, page)
    return out / PAGE


def recovered(results: Results) -> str:
    """How much of the teacher's lead the student recovers; an empty string if the teacher does not lead."""
    shares = []
    for task in TASKS:
        low, student, high = (results.metrics[f"{role}/knn-{task}"] for role in ("random", "student", "teacher"))
        if high <= low:
            return ""
        shares.append(f"{100 * (student - low) / (high - low):.0f} % (new {task})")
    shown = " and ".join(shares)
    return f" In k-NN accuracy the student recovers {shown} of the teacher's lead over random weights."


def describe_images(tour: Tour) -> tuple[str, ...]:
    """Sentences on the numbers of images: trained on, left out, and labelled ones that the student saw."""
    datasets = read_results(tour.out / "student").datasets
    trained, held_out = datasets["train"], datasets.get("held_out")
    sentence = f"The student was trained on {trained.count:,} images"
    if held_out is not None:
        sentence += f"; {held_out.count:,} more were held out to decide when to stop"
    if num_compared := len((tour.out / "held-out.txt").read_text(encoding="utf-8").splitlines()):
        sentence += f"; {num_compared:,} were reserved for the comparison"
    sentences = [f"{sentence}."]
    if trained.broken:
        sentences.append(f"{trained.broken:,} could not be read and were skipped.")
    if tour.labelled is not None and not tour.is_split:
        seen = {path.resolve() for path in read_unlabelled(tour.out / "train.txt").paths}
        both = sum(path.resolve() in seen for path in read_labelled(tour.labelled).paths)
        sentences.append(f"They include {both:,} of the labelled images; the student saw those without their labels.")
    return tuple(sentences)


# --- pictures and tables ----------------------------------------------------------------------------------------------


def neighbour_sheet(run: Path, what: str) -> Picture:
    """The sheet of nearest neighbours of the student's k-NN run."""
    return Picture(
        file=run / "figures" / "neighbours.png",
        wide=True,
        alt="In each row an image and its ten nearest neighbours by the student; green frame: same class.",
        caption=f"The student's nearest neighbours among {what}; green frame: same class, red: another class",
    )


def embedding(run: Path, whose: str) -> Picture:
    """The 2-D embedding of a k-NN run."""
    return Picture(
        file=run / "figures" / "embedding.png",
        alt=f"Dots and thumbnails in a plane, coloured by class: features of {whose}.",
        caption=f"Two principal components of the features of {whose}, by class",
    )


def sheet(run: Path, whose: str) -> Picture:
    """The sheet of predictions of a segmentation or detection run."""
    return Picture(
        file=run / "figures" / "sheet.png",
        wide=True,
        alt=f"Scenes, ground truth, and predictions from the feature maps of {whose}.",
        caption=f"Predictions from the feature maps of {whose}",
    )


def iou_table(out: Path) -> Table:
    """IoU of each class, for each probed net."""
    ious = {name: read_results(out / f"segmentation-{role}").extra["iou_per_class"] for role, name in PROBED.items()}
    classes = tuple(ious[PROBED["student"]])
    rows = tuple((name, *(f"{100 * values[one]:.1f}" for one in classes)) for name, values in ious.items())
    return Table(caption="IoU of each class, %", header=("feature maps of", *classes), rows=rows)


def learning_curves(out: Path, panels: Mapping[str, Mapping[str, Path]]) -> Section:
    """The section of learning curves, from the runs' metrics.jsonl, with the student's agreement and warnings.

    Args:
        out: folder of the figure and of the student's run.
        panels: title -> name of a curve -> run directory, whose loss is drawn.
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
    caption = "Training loss, mean since the previous point; agreement with the teacher on held-out images, 0 is chance"
    picture = Picture(file=out / "curves.png", alt="; ".join(ends), caption=caption, wide=True)
    return Section(title="Learning curves", text=describe_agreement(out / "student"), pictures=(picture,))


def curve(run: Path, metric: str) -> Curve:
    """The values of a metric over the steps of a run."""
    return [(row["step"], row[metric]) for row in read_metrics(run) if metric in row]


def describe_agreement(run: Path) -> tuple[str, ...]:
    """Sentences on the student's neighbour agreement with the teacher, and the warnings of its run."""
    results = read_results(run)
    if AGREEMENT_METRIC not in results.metrics:
        return ()
    before, after = (
        agreement_text(metrics[AGREEMENT_METRIC], " %") for metrics in (results.extra["untrained"], results.metrics)
    )
    sentence = (
        f"Neighbour agreement with the teacher on held-out images, corrected for chance: {after}; "
        f"{before} before training."
    )
    return (sentence, *(f"Warning: {warning}." for warning in results.extra["warnings"]))


def closing(tour: Tour, lanes: Lanes, results: Results, about_data: str) -> tuple[Section, ...]:
    """The last sections of every page: cost, time, licences, next steps."""
    names, costs = results.extra["nets"], results.extra["cost"]
    cost = Table(
        caption=f"One image in float32 on one thread of {results.extra['machine']}",
        header=("net", "input, px", "parameters, million", "GMACs", "ms"),
        rows=tuple(
            (
                *(names[role], str(one["size"]), f"{one['parameters'] / 1e6:.2f}", f"{one['macs'] / 1e9:.3f}"),
                f"{one['milliseconds']:.1f}",
            )
            for role, one in costs.items()
        ),
    )
    parallel = ", two at a time" if len(lanes.pipes) > 1 else ""
    spent = Table(
        caption=f"Seconds of each step{parallel}",
        header=("step", "s"),
        rows=tuple((title, f"{seconds:.0f}") for title, seconds in results.extra["steps"].items()),
    )
    total = f"{results.seconds:.0f} s in total, after installation."
    if lanes.resumed:
        total = "An earlier tour had started or finished some steps: their seconds are those of their last run."
    student = checkpoint_manifest(nets_of(tour)["student"])
    licences = {
        "teacher": student.teacher.licence if student.teacher else Licence(),
        "student": student.backbone.licence,
    }
    licensed = Table(
        caption="Licences in the student's manifest",
        header=("weights of", "licence", "restrictions"),
        rows=tuple((names[role], one.spdx, "; ".join(one.restrictions) or "none") for role, one in licences.items()),
    )
    inherited = "A student inherits its teacher's licence and the restrictions of its training images."
    next_text = f"The student is the checkpoint {nets_of(tour)['student']}, which every tool accepts."
    return (
        Section(title="Cost", tables=(cost,), commands=commands(lanes, "cost")),
        Section(title="Time", text=(total,), tables=(spent,)),
        Section(title="Licences", text=(inherited, about_data), tables=(licensed,)),
        Section(title="Next steps", text=(next_text,), commands=tuple(("", one) for one in next_commands(tour))),
    )


def commands(lanes: Lanes, *names: str) -> tuple[tuple[str, str], ...]:
    """Title and command of the steps with one of these names; a name that ends in a hyphen is a prefix."""
    return tuple(
        (step.title, step.command)
        for step in lanes.steps
        if any(step.name == name or (name.endswith("-") and step.name.startswith(name)) for name in names)
    )


def next_commands(tour: Tour) -> tuple[str, ...]:
    """Three commands to run next."""
    # Each runs with what tools/quickstart.sh installs, and for any student; ONNX, for instance, needs more packages.
    tool, student = ".venv/bin/python tools", shlex.quote(nets_of(tour)["student"])
    evaluate = f"{tool}/eval_ssl.py knn --checkpoint {student} --train YOUR_LABELLED/train --test YOUR_LABELLED/val"
    return (
        "bash tools/quickstart.sh --images YOUR_IMAGES --out runs/report"
        if tour.images is None
        else f"{evaluate} --out runs/knn",
        f"{tool}/cls_transfer.py finetune --checkpoint {student} --train YOUR_LABELLED/train --test YOUR_LABELLED/val "
        "--out runs/finetuned",
        f"{tool}/eval_ssl.py features --no-labels --checkpoint {student} --train YOUR_IMAGES --out runs/features",
    )


def origin(results: Results) -> str:
    """The command, commit, torch version and date that made the page."""
    made = results.made_by
    commit, dirty, _ = (made.commit or "").partition("+dirty")
    commit = f"commit {commit[:12]}{' with uncommitted changes' if dirty else ''}" if commit else "no commit"
    return f"bash tools/quickstart.sh, {commit}, torch {made.torch}, {made.date[:10]}"
