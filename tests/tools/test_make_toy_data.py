"""The toy data set, created by command line as users do, and checked by its files."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import toy_scenes
from make_toy_data import SCENE_KINDS
from toy_scenes import Scene, draw_crowd, find_layers, render, sample_points, signed_distance, visible_shares

TOOL = Path(__file__).parents[2] / "tools" / "make_toy_data.py"
SMALL = {
    "size": 24,
    "num-unlabelled": 32,
    "num-train": 32,
    "num-heldout": 16,
    "num-val": 16,
    "num-workers": 1,
    "scene-size": 48,
    "num-scenes": 16,
    "num-scenes-val": 8,
}
HELDOUT_TASKS = ("heldout-pairs", "heldout-shapes", "heldout-textures")
TASKS = ("objects", *HELDOUT_TASKS)


def command(out: Path, **flags: int) -> list[str]:
    settings = SMALL | {name.replace("_", "-"): value for name, value in flags.items()}
    return [sys.executable, str(TOOL), "--out", str(out), *(f"--{name}={value}" for name, value in settings.items())]


def make(out: Path, **flags: int) -> Path:
    subprocess.run(command(out, **flags), check=True, capture_output=True)
    return out


def refusal(out: Path, **flags: int) -> str:
    result = subprocess.run(command(out, **flags), capture_output=True, text=True)
    assert result.returncode == 2
    return result.stderr.strip().removeprefix("error: ")


def read_files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def digests(root: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.jpg")}


def read_masks(toy: Path, split: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted((toy / "scenes" / "labels" / split).iterdir())]


def read_boxes(toy: Path, split: str) -> dict[str, list[dict]]:
    return json.loads((toy / "scenes" / "annotations" / f"{split}.json").read_text())


def crowd(index: int, size: int = 48) -> Scene:
    return draw_crowd(0, "scenes/train", index, SCENE_KINDS, size)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("toy") / "data")


def test_same_seed_gives_same_bytes_from_one_process_and_from_two(toy: Path, tmp_path: Path) -> None:
    assert read_files(make(tmp_path / "again", num_workers=2)) == read_files(toy)


def test_another_seed_shares_no_image(toy: Path, tmp_path: Path) -> None:
    assert digests(make(tmp_path / "other", seed=1)).isdisjoint(digests(toy))


def test_every_folder_holds_the_images_and_classes_that_dataset_json_lists(toy: Path) -> None:
    dataset = json.loads((toy / "dataset.json").read_text())
    assert {path.name for path in toy.iterdir()} == {"unlabelled", *TASKS, "scenes", "dataset.json"}
    assert len(list((toy / "unlabelled").glob("*.jpg"))) == dataset["counts"]["unlabelled"] == 32
    for task in TASKS:
        for split, count in (("train", 32 if task == "objects" else 16), ("val", 16)):
            folders = list((toy / task / split).iterdir())
            assert {folder.name for folder in folders} == set(dataset["classes"][task])
            sizes = {len(list(folder.glob("*.jpg"))) for folder in folders}
            assert sizes == {count // len(folders)}
            assert dataset["counts"][f"{task}/{split}"] == count
    written = {name.replace("-", "_"): value for name, value in SMALL.items() if name != "num-workers"}
    assert dataset["settings"] == {"seed": 0} | written
    source = TOOL.read_bytes() + TOOL.with_name("toy_scenes.py").read_bytes()
    assert dataset["generator"]["sha256"] == hashlib.sha256(source).hexdigest()


def test_no_heldout_class_is_a_class_of_the_teacher(toy: Path) -> None:
    dataset = json.loads((toy / "dataset.json").read_text())
    assert (dataset["teacher_task"], tuple(dataset["heldout_tasks"])) == ("objects", HELDOUT_TASKS)
    assert [len(dataset["classes"][task]) for task in TASKS] == [16, 8, 8, 8]
    names = [name for task in TASKS for name in dataset["classes"][task]]
    assert len(set(names)) == len(names)
    known = {part for name in dataset["classes"]["objects"] for part in name.split("-")}
    assert known == {part for name in dataset["classes"]["heldout-pairs"] for part in name.split("-")}
    assert known.isdisjoint(dataset["classes"]["heldout-shapes"] + dataset["classes"]["heldout-textures"])


def test_no_image_is_in_two_folders(toy: Path) -> None:
    assert len(digests(toy)) == len(list(toy.rglob("*.jpg"))) == 32 + 32 + 3 * 16 + 4 * 16 + 16 + 8


def test_every_image_is_rgb_of_the_requested_size(toy: Path) -> None:
    for path in toy.rglob("*.jpg"):
        with Image.open(path) as image:
            side = 48 if "scenes" in path.parts else 24
            assert (image.mode, image.size) == ("RGB", (side, side))


def test_the_mean_colour_does_not_predict_the_class(tmp_path: Path) -> None:
    data = make(tmp_path / "colours", size=16, num_train=160, num_heldout=160, num_val=96)

    def mean_colours(folder: Path) -> np.ndarray:
        return np.array([np.asarray(Image.open(path)).mean((0, 1)) for path in sorted(folder.glob("*.jpg"))])

    for task in TASKS:
        classes = sorted(path.name for path in (data / task / "val").iterdir())
        class_means = np.array([mean_colours(data / task / "train" / name).mean(0) for name in classes])
        colours = np.array([mean_colours(data / task / "val" / name) for name in classes])  # (class, image, channel)
        nearest = np.linalg.norm(colours[:, :, None] - class_means, axis=-1).argmin(-1)
        accuracy = (nearest == np.arange(len(classes))[:, None]).mean()
        # Chance is 1 / classes, with a standard deviation of 0.03 over 96 images.
        assert accuracy < 1 / len(classes) + 0.1, (task, accuracy)


def test_without_scenes_the_other_images_are_the_same(toy: Path, tmp_path: Path) -> None:
    without = read_files(make(tmp_path / "without", num_scenes=0))
    assert not (tmp_path / "without" / "scenes").exists()
    others = {name: content for name, content in read_files(toy).items() if not name.startswith("scenes/")}
    assert {name for name in others if others[name] != without[name]} == {"dataset.json"}
    assert others.keys() == without.keys()


@pytest.mark.parametrize(("split", "count"), [("train", 16), ("val", 8)])
def test_every_scene_has_a_mask_of_its_size_and_every_class_occurs(toy: Path, split: str, count: int) -> None:
    names = [path.stem for path in sorted((toy / "scenes" / "images" / split).glob("*.jpg"))]
    assert names == [path.stem for path in sorted((toy / "scenes" / "labels" / split).glob("*.png"))]
    assert names == [f"{index:06d}" for index in range(count)]
    masks = read_masks(toy, split)
    assert {(mask.dtype.name, mask.shape) for mask in masks} == {("uint8", (48, 48))}
    classes = (toy / "scenes" / "classes.txt").read_text().splitlines()
    assert classes == ["background", *SCENE_KINDS]
    assert np.unique(masks).tolist() == list(range(len(classes)))


@pytest.mark.parametrize(("split", "count"), [("train", 16), ("val", 8)])
def test_ids_of_a_coco_file_are_consistent(toy: Path, split: str, count: int) -> None:
    boxes = read_boxes(toy, split)
    assert boxes["images"] == [
        {"id": index + 1, "file_name": f"{index:06d}.jpg", "width": 48, "height": 48} for index in range(count)
    ]
    classes = (toy / "scenes" / "classes.txt").read_text().splitlines()
    assert boxes["categories"] == [{"id": i, "name": name} for i, name in enumerate(classes) if i > 0]
    annotations = boxes["annotations"]
    assert [one["id"] for one in annotations] == list(range(1, len(annotations) + 1))
    assert all(2 <= sum(one["image_id"] == image["id"] for one in annotations) <= 4 for image in boxes["images"])
    assert {one["category_id"] for one in annotations} == set(range(1, len(classes)))
    assert {one["iscrowd"] for one in annotations} == {0}


def test_boxes_and_areas_are_those_of_the_mask(toy: Path) -> None:
    masks, annotations = read_masks(toy, "train"), read_boxes(toy, "train")["annotations"]
    num_alone = 0
    for image, mask in enumerate(masks, 1):
        here = [one for one in annotations if one["image_id"] == image]
        assert {one["category_id"] for one in here} == set(np.unique(mask)) - {0}
        for category in {one["category_id"] for one in here}:
            same = [one for one in here if one["category_id"] == category]
            assert sum(one["area"] for one in same) == np.count_nonzero(mask == category)
            if len(same) == 1:
                rows, columns = np.nonzero(mask == category)
                left, top = columns.min(), rows.min()
                assert same[0]["bbox"] == [left, top, columns.max() - left + 1, rows.max() - top + 1]
                num_alone += 1
    assert num_alone > 20


def test_masks_and_annotations_follow_the_scene(toy: Path) -> None:
    """Each sample belongs to the last object around it, each pixel to most of its samples, or else to the upper two."""
    classes, annotations = [None, *SCENE_KINDS], read_boxes(toy, "train")["annotations"]
    for index, mask in enumerate(read_masks(toy, "train")):
        objects = crowd(index).objects
        x, y = sample_points(48)
        top = np.zeros((96, 96), int)
        for layer, thing in enumerate(objects, 1):
            top = np.where(signed_distance(thing, x, y) < 0, layer, top)
        layers = np.zeros((48, 48), int)
        for row, column in np.ndindex(48, 48):
            samples = top[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].ravel().tolist()
            layers[row, column] = max(layer for layer in samples if sum(other >= layer for other in samples) >= 2)
            if most := [layer for layer in samples if samples.count(layer) > 2]:
                assert layers[row, column] == most[0]
        ids = np.array([0, *(classes.index(thing.label) for thing in objects)])
        assert (mask == ids[layers]).all()
        areas = [np.count_nonzero(layers == layer) for layer, number in enumerate(ids) if number > 0]
        assert areas == [one["area"] for one in annotations if one["image_id"] == index + 1]


def test_recolouring_an_object_changes_its_pixels_and_a_seam_around_them() -> None:
    num_inside = num_outside = 0
    for scene in map(crowd, range(8)):
        layers = find_layers(scene.objects, 48)
        for layer, thing in enumerate(scene.objects, 1):
            dark, light = (replace(thing, texture="plain", colours=((tone,) * 3,) * 2) for tone in (0.3, 0.7))
            before, after = scene.objects[: layer - 1], scene.objects[layer:]
            images = [render(replace(scene, objects=(*before, one, *after)), 48) for one in (dark, light)]
            inside, changed = layers == layer, (images[0] != images[1]).any(-1)
            assert changed[inside].all()
            seam = np.asarray(Image.fromarray(inside).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
            num_inside, num_outside = num_inside + inside.sum(), num_outside + (changed & ~seam).sum()
    assert num_outside < 0.01 * num_inside  # slivers thinner than a pixel


def test_at_least_half_of_every_object_of_a_scene_is_visible_though_objects_overlap() -> None:
    shares = [share for index in range(64) for share in visible_shares(crowd(index).objects, 48)]
    assert min(shares) >= 0.5
    assert 0.1 < np.mean(np.array(shares) < 0.9) < 0.5


def test_a_scene_whose_objects_hide_each_other_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter([[1.0, 0.5], [1.0, 0.49], [1.0, 0.5]])
    monkeypatch.setattr(toy_scenes, "visible_shares", lambda objects, size: next(verdicts))
    first, again = crowd(0), crowd(0)
    assert [thing.label for thing in again.objects if thing.label] == [one.label for one in first.objects if one.label]
    assert {thing.centre for thing in again.objects}.isdisjoint(thing.centre for thing in first.objects)


def test_an_existing_output_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert refusal(tmp_path / "mine") == f"{tmp_path}/mine exists already: remove it or choose another --out"
    assert read_files(tmp_path) == {"mine/notes.txt": b"keep"}


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"seed": -1}, "--seed is -1: pass an integer from 0"),
        ({"size": 8}, "--size is 8 px: shapes are distinguishable from 16 px on"),
        ({"num_val": 9}, "objects/val would hold 9 images: pass at least 16, one of each class"),
        ({"num_unlabelled": 0}, "unlabelled would hold 0 images: pass at least 1, one of each class"),
        ({"scene_size": 47}, "--scene-size is 47 px: shapes of a scene are distinguishable from 48 px on"),
        ({"num_scenes": 7}, "scenes/train would hold 7 images: pass at least 8, one of each class"),
        ({"num_scenes_val": 0}, "scenes/val would hold 0 images: pass at least 8, one of each class"),
        ({"num_workers": 0}, "--num-workers is 0: it must be at least 1"),
    ],
)
def test_settings_that_cannot_give_a_data_set_are_refused(tmp_path: Path, flags: dict[str, int], text: str) -> None:
    assert refusal(tmp_path / "data", **flags) == text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, stop: signal.Signals) -> None:
    # As from a terminal, the signal reaches the whole process group: the parent and its two workers.
    run = subprocess.Popen(
        command(tmp_path / "data", num_train=100_000, num_workers=2),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(stop, signal.SIG_DFL),  # background jobs of a shell ignore SIGINT
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.jpg")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(run.pid, stop)
        assert run.wait(timeout=30) != 0
        assert list(tmp_path.iterdir()) == []
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
