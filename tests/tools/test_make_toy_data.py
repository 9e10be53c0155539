"""The toy data set is asked for as its users do, by command line, and judged by the files it leaves."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TOOL = Path(__file__).parents[2] / "tools" / "make_toy_data.py"
SMALL = {"size": 24, "num-unlabelled": 32, "num-train": 32, "num-heldout": 16, "num-val": 16, "num-workers": 1}
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
    assert result.returncode != 0
    return result.stderr.strip()


def read_files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def digests(root: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.jpg")}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("toy") / "data")


def test_same_seed_gives_same_bytes_from_one_process_and_from_two(toy: Path, tmp_path: Path) -> None:
    assert read_files(make(tmp_path / "again", num_workers=2)) == read_files(toy)


def test_another_seed_shares_no_picture(toy: Path, tmp_path: Path) -> None:
    assert digests(make(tmp_path / "other", seed=1)).isdisjoint(digests(toy))


def test_every_folder_holds_the_pictures_and_classes_that_dataset_json_says(toy: Path) -> None:
    dataset = json.loads((toy / "dataset.json").read_text())
    assert {path.name for path in toy.iterdir()} == {"unlabelled", *TASKS, "dataset.json"}
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


def test_no_picture_is_in_two_folders(toy: Path) -> None:
    assert len(digests(toy)) == len(list(toy.rglob("*.jpg"))) == 32 + 32 + 3 * 16 + 4 * 16


def test_every_picture_is_rgb_of_the_size_asked_for(toy: Path) -> None:
    for path in toy.rglob("*.jpg"):
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("RGB", (24, 24))


def test_mean_colour_does_not_tell_the_class(tmp_path: Path) -> None:
    data = make(tmp_path / "colours", size=16, num_train=160, num_heldout=160, num_val=96)

    def mean_colours(folder: Path) -> np.ndarray:
        return np.array([np.asarray(Image.open(path)).mean((0, 1)) for path in sorted(folder.glob("*.jpg"))])

    for task in TASKS:
        classes = sorted(path.name for path in (data / task / "val").iterdir())
        class_means = np.array([mean_colours(data / task / "train" / name).mean(0) for name in classes])
        colours = np.array([mean_colours(data / task / "val" / name) for name in classes])  # (class, picture, channel)
        nearest = np.linalg.norm(colours[:, :, None] - class_means, axis=-1).argmin(-1)
        accuracy = (nearest == np.arange(len(classes))[:, None]).mean()
        # Chance is 1 / classes, with a standard deviation of 0.03 over 96 pictures.
        assert accuracy < 1 / len(classes) + 0.1, (task, accuracy)


def test_an_existing_output_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert refusal(tmp_path / "mine") == f"{tmp_path}/mine exists already: remove it or give another --out"
    assert read_files(tmp_path) == {"mine/notes.txt": b"keep"}


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"seed": -1}, "--seed is -1: give an integer from 0"),
        ({"size": 8}, "--size is 8 px: shapes can be told apart from 16 px on"),
        ({"num_val": 9}, "objects/val would hold 9 pictures: give at least 16, one of each class"),
        ({"num_unlabelled": 0}, "unlabelled would hold 0 pictures: give at least 1, one of each class"),
        ({"num_workers": 0}, "max_workers must be greater than 0"),
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
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: signal.signal(stop, signal.SIG_DFL),  # background jobs of a shell ignore SIGINT
    )  # fmt: skip
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
