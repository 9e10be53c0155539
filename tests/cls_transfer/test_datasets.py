"""The published layouts, in small generated copies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from published import write_caltech, write_cifar, write_cub, write_dtd, write_image

from stillroom.cls_transfer.datasets import CIFAR10, CIFAR100, Cifar, TaskSource, read_task
from stillroom.images.decode import load_image
from stillroom.runs import Run


@pytest.mark.parametrize(("task", "cifar"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifars_records_are_read_to_the_pixel(tmp_path: Path, run: Run, task: str, cifar: Cifar) -> None:
    names = ["apple", "bear", "crab"]
    written = write_cifar(tmp_path, cifar, names)
    splits = read_task(task, TaskSource(data=tmp_path, run=run, partial=True))
    assert (len(splits.train), len(splits.test)) == (6 * len(cifar.train), 6)
    assert splits.train.classes == splits.test.classes == tuple(names)
    for path, label in zip(splits.test.paths, splits.test.labels, strict=True):
        record = written[cifar.test[0]][int(path.stem.rpartition("-")[2])]
        assert record[cifar.labels - 1] == label
        pixels = np.asarray(load_image(path))
        assert np.array_equal(pixels[:, :, 0].ravel(), record[cifar.labels :][:1024])  # red, row by row, comes first
        assert np.array_equal(pixels[:, :, 2].ravel(), record[cifar.labels :][2048:])
    assert splits.words == f"{task} partial=3/{6 * len(cifar.train)}/6"


def test_cifar_is_unpacked_once_and_anew_where_the_records_change(tmp_path: Path, run: Run) -> None:
    write_cifar(tmp_path, CIFAR100, ["a", "b"])
    source = TaskSource(data=tmp_path, run=run, partial=True)
    first = read_task("cifar100", source).train.paths[0]
    before = first.stat().st_mtime_ns
    assert read_task("cifar100", source).train.paths[0].stat().st_mtime_ns == before
    file = tmp_path / CIFAR100.folder / "train.bin"
    file.write_bytes(bytes(reversed(file.read_bytes()[:-2])) + b"\0\0")
    with pytest.raises(ValueError, match=r"train\.bin has label \d+, but there are 2 class names"):
        read_task("cifar100", source)


def test_cifar_as_image_folders(labelled: Callable[..., Path], tmp_path: Path, run: Run) -> None:
    labelled("cifar10/train", per_class=2)
    labelled("cifar10/test", per_class=1)
    splits = read_task("cifar10", TaskSource(data=tmp_path, run=run, partial=True))
    assert (len(splits.train), len(splits.test), splits.words) == (6, 3, "cifar10 folders partial=3/6/3")


def test_cifar_that_is_torn_or_missing_is_one_sentence(tmp_path: Path, run: Run) -> None:
    source = TaskSource(data=tmp_path, run=run)
    with pytest.raises(
        ValueError,
        match=r"there is no .*cifar-100-binary: unpack .*cifar-100-binary\.tar\.gz there, or pass --download",
    ):
        read_task("cifar100", source)
    write_cifar(tmp_path, CIFAR100, ["a", "b"])
    file = tmp_path / CIFAR100.folder / "test.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"test\.bin has 18443 bytes, which is not a whole number of records of 3074"):
        read_task("cifar100", source)
    file.unlink()
    with pytest.raises(ValueError, match=r"test\.bin cannot be read: No such file"):
        read_task("cifar100", source)


def test_a_download_that_fails_says_what_to_unpack_where(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz cannot be downloaded .*: unpack it into "):
        read_task("cifar10", TaskSource(data=tmp_path, run=run, download=True))
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere: create it, or pass another --data"):
        read_task("cifar10", TaskSource(data=tmp_path / "nowhere", run=run, download=True))


def test_a_download_is_unpacked_where_it_is_read(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[str, str]] = []

    def fetch(url: str, folder: str, md5: str) -> None:  # there is no network in a test
        fetched.append((url, md5))
        write_cifar(Path(folder), CIFAR10, ["cat", "dog", "frog"])

    monkeypatch.setattr("stillroom.cls_transfer.datasets.download_and_extract_archive", fetch)
    source = TaskSource(data=tmp_path, run=run, download=True, partial=True)
    splits = read_task("cifar10", source)
    assert len(splits.train) == 30 and len(splits.test) == 6
    assert (tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin").is_file()
    read_task("cifar10", source)
    assert fetched == [("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", CIFAR10.md5)]


def test_an_archive_without_the_expected_folder_is_not_called_a_failed_download(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillroom.cls_transfer.datasets.download_and_extract_archive", lambda *_, **__: None)
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-bin"):
        read_task("cifar10", TaskSource(data=tmp_path, run=run, download=True))


def test_dtd_trains_on_train_and_val_of_its_split(tmp_path: Path, run: Run) -> None:
    write_dtd(tmp_path)
    splits = read_task("dtd", TaskSource(data=tmp_path, run=run, partial=True))
    assert (len(splits.train), len(splits.test)) == (8, 4)
    assert not set(splits.train.paths) & set(splits.test.paths)
    for files in (splits.train, splits.test):
        assert [files.classes[label] for label in files.labels] == [path.parent.name for path in files.paths]
    other = read_task("dtd", TaskSource(data=tmp_path, run=run, partial=True, dtd_split=2))
    assert set(other.test.paths) != set(splits.test.paths) and other.words.startswith("dtd split=2")
    (tmp_path / "dtd" / "images" / "banded" / "banded_0001.jpg").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of \d listed images, the first is .*banded_0001\.jpg"):
        read_task("dtd", TaskSource(data=tmp_path, run=run))
    with pytest.raises(ValueError, match="--dtd-split is 11"):
        read_task("dtd", TaskSource(data=tmp_path, run=run, dtd_split=11))
    with pytest.raises(ValueError, match=r"train3\.txt cannot be read"):
        read_task("dtd", TaskSource(data=tmp_path, run=run, dtd_split=3))


def test_caltech_leaves_out_hidden_images_and_those_in_subfolders(tmp_path: Path, run: Run) -> None:
    write_caltech(tmp_path)
    classes = sorted((tmp_path / "256_ObjectCategories").iterdir())
    write_image(classes[0] / "._0001.jpg")
    splits = read_task("caltech256", TaskSource(data=tmp_path, run=run, partial=True))
    assert len(splits.train.classes) == len(classes) and len(splits.train) + len(splits.test) == 63 * len(classes)
    assert splits.train.left_out == {"hidden": 1, "not in a class folder itself": 1}


def test_caltech_draws_60_of_each_class_or_takes_the_first(tmp_path: Path, run: Run) -> None:
    write_caltech(tmp_path)
    drawn = read_task("caltech256", TaskSource(data=tmp_path, run=run, partial=True))
    assert (len(drawn.train), len(drawn.test)) == (180, 9)
    assert torch.tensor(drawn.train.labels).bincount().tolist() == [60, 60, 60]
    assert not any("greg" in str(path) for path in (*drawn.train.paths, *drawn.test.paths))
    other = read_task("caltech256", TaskSource(data=tmp_path, run=run, partial=True, seed=1))
    assert set(other.test.paths) != set(drawn.test.paths)
    first = read_task("caltech256", TaskSource(data=tmp_path, run=run, partial=True, first=True))
    assert {path.stem[-2:] for path in first.test.paths} == {"60", "61", "62"}
    assert "per-class=60 first" in first.words and "per-class=60 seed=0" in drawn.words
    few = read_task("caltech256", TaskSource(data=tmp_path, run=run, partial=True, per_class=30))
    assert (len(few.train), len(few.test)) == (90, 99) and "per-class=30 seed=0" in few.words
    with pytest.raises(ValueError, match="--caltech-per-class is 0: it must be at least 1"):
        read_task("caltech256", TaskSource(data=tmp_path, run=run, per_class=0))
    (tmp_path / "256_ObjectCategories" / ".cache").mkdir()
    assert len(read_task("caltech256", TaskSource(data=tmp_path, run=run, partial=True)).train.classes) == 3
    for path in sorted((tmp_path / "256_ObjectCategories" / "001.ak47").iterdir())[:3]:
        path.unlink()
    with pytest.raises(ValueError, match=r"001\.ak47 holds 60 images: more than 60 are needed"):
        read_task("caltech256", TaskSource(data=tmp_path, run=run))
    with pytest.raises(ValueError, match=r"there is no .*256_ObjectCategories: unpack"):
        read_task("caltech256", TaskSource(data=tmp_path / "other", run=run))


def test_cub_takes_its_own_split_and_labels(tmp_path: Path, run: Run) -> None:
    write_cub(tmp_path)
    splits = read_task("cub", TaskSource(data=tmp_path, run=run, partial=True))
    assert splits.train.classes == ("001.Albatross", "002.Auklet")
    assert [path.name for path in splits.train.paths] == [
        f"{k}_{i}.jpg" for k in ("Albatross", "Auklet") for i in (0, 2)
    ]
    assert list(splits.test.labels or ()) == [0, 0, 1, 1]
    with pytest.raises(
        ValueError,
        match="has 2 classes, 4 training and 4 test images, the published one 200, 5994 and 5794: complete it, or pass",
    ):
        read_task("cub", TaskSource(data=tmp_path, run=run))
    labels = tmp_path / "CUB_200_2011" / "image_class_labels.txt"
    whole = labels.read_text()
    labels.write_text(whole.replace("3 1\n", "3 2\n"))
    with pytest.raises(ValueError, match=r"image 3 is 001\.Albatross/Albatross_2\.jpg, its class 2 is 002\.Auklet"):
        read_task("cub", TaskSource(data=tmp_path, run=run))
    labels.write_text(whole.replace("3 1\n", "3\n"))
    with pytest.raises(ValueError, match=r"image_class_labels\.txt: line 3 is not a number and a name"):
        read_task("cub", TaskSource(data=tmp_path, run=run))
    labels.write_text(whole.replace("8 2\n", ""))
    with pytest.raises(ValueError, match="the three lists of images differ in 1 numbers, the first is 8"):
        read_task("cub", TaskSource(data=tmp_path, run=run))


def test_cifar_is_unpacked_for_this_run_alone_where_the_cache_cannot_be_written(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cifar(tmp_path, CIFAR100, ["a", "b"])
    source = TaskSource(data=tmp_path, run=run, partial=True)
    usual = read_task("cifar100", source)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "file"))
    splits = read_task("cifar100", source)
    assert splits.train.fingerprint == usual.train.fingerprint and splits.train.root != usual.train.root
    warning = capsys.readouterr().err
    assert f"warning: {tmp_path}/file/cifar cannot be written (Not a directory): unpacked into " in warning
