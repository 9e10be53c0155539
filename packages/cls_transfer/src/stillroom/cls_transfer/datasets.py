"""The four data sets of KDEP's classification transfer, and CIFAR-10, in the layouts their authors publish."""

import atexit
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
from PIL import Image
from torchvision.datasets.utils import download_and_extract_archive

from stillroom.backbone.atomic import replace_directory
from stillroom.backbone.cache_folder import cache_directory, warn_once
from stillroom.cls_transfer.config import TaskName
from stillroom.images import Source, read_labelled
from stillroom.images.files import shuffled_by_class
from stillroom.images.folder import walk
from stillroom.images.source import from_paths
from stillroom.runs import Run
from stillroom.runs.progress import Progress
from stillroom.runs.store import cache_key

_SIDE = 32  # px of CIFAR
_PIXELS = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class Splits:
    """Training and test images of a data set.

    Attributes:
        train, test: labelled, of the same classes.
        words: the data set and its part, for the protocol id.
    """

    train: Source
    test: Source
    words: str


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The sizes of a complete data set: classes, images."""

    classes: int
    train: int
    test: int


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Where a data set is read from.

    Args:
        data: the folder that holds the published folders: cifar-100-binary, dtd, 256_ObjectCategories, CUB_200_2011.
        run: this process; the main one unpacks.
        seed: draws the training images of Caltech-256.
        dtd_split: 1 to 10.
        per_class: training images of each class of Caltech-256.
        first: train on the first images of each class of Caltech-256, as KDEP's released code does, not on drawn ones.
        partial: accept an incomplete data set; its `words` then say so.
        download: download CIFAR if it is missing.
    """

    data: Path
    run: Run
    seed: int = 0
    dtd_split: int = 1
    per_class: int = 60
    first: bool = False
    partial: bool = False
    download: bool = False


def read_task(name: TaskName, source: TaskSource) -> Splits:
    """Read one of the data sets.

    Raises:
        ValueError: a folder or file that is missing, damaged, or incomplete (without `partial`).
    """
    num_train = 257 * source.per_class
    readers: dict[str, tuple[Callable[[TaskSource], Splits], Counts]] = {
        "cifar10": (lambda source: _read_cifar(source, CIFAR10), Counts(classes=10, train=50_000, test=10_000)),
        "cifar100": (lambda source: _read_cifar(source, CIFAR100), Counts(classes=100, train=50_000, test=10_000)),
        "dtd": (_read_dtd, Counts(classes=47, train=3_760, test=1_880)),
        "caltech256": (_read_caltech, Counts(classes=257, train=num_train, test=30_607 - num_train)),
        "cub": (_read_cub, Counts(classes=200, train=5_994, test=5_794)),
    }
    reader, counts = readers[name]
    splits = reader(source)
    actual = Counts(classes=len(splits.train.classes), train=len(splits.train), test=len(splits.test))
    if actual == counts:
        return splits
    if not source.partial:
        raise ValueError(
            f"{splits.words} in {source.data} has {actual.classes} classes, {actual.train} training and {actual.test} "
            f"test images, the published one {counts.classes}, {counts.train} and {counts.test}: complete it, "
            f"or pass --partial"
        )
    return replace(splits, words=f"{splits.words} partial={actual.classes}/{actual.train}/{actual.test}")


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """The binary version of CIFAR-10 or CIFAR-100 (Krizhevsky 2009): records of labels and 3 x 32 x 32 bytes."""

    name: str
    folder: str
    names: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: int
    md5: str


CIFAR10 = Cifar(
    name="cifar10",
    folder="cifar-10-batches-bin",
    names="batches.meta.txt",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    labels=1,
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)
CIFAR100 = Cifar(
    name="cifar100",
    folder="cifar-100-binary",
    names="fine_label_names.txt",
    train=("train.bin",),
    test=("test.bin",),
    labels=2,
    md5="03b5dce01913d631647c71ecec9e9cb8",
)
_ARCHIVES = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}
_SITE = "https://www.cs.toronto.edu/~kriz"


def _read_cifar(source: TaskSource, cifar: Cifar) -> Splits:
    """Read CIFAR from its binary records, unpacked once into image folders in the cache; or from image folders."""
    folder, plain = source.data / cifar.folder, source.data / cifar.name
    if not folder.is_dir() and (plain / "train").is_dir():
        train = read_labelled(plain / "train")
        return Splits(train, read_labelled(plain / "test", train.classes), f"{cifar.name} folders")
    missing = not folder.is_dir()
    source.run.wait()  # every process has looked before the main one unpacks
    if missing and not source.data.is_dir():
        raise ValueError(f"there is no folder {source.data}: create it, or pass another --data")
    if missing and not source.download:
        raise ValueError(f"there is no {folder}: unpack {_SITE}/{_ARCHIVES[cifar.name]} there, or pass --download")
    if missing:
        if source.run.is_main:
            archive = f"{_SITE}/{_ARCHIVES[cifar.name]}"
            with TemporaryDirectory(dir=source.data) as aside:
                try:
                    download_and_extract_archive(archive, aside, md5=cifar.md5)
                except (OSError, RuntimeError) as error:
                    raise ValueError(
                        f"{archive} cannot be downloaded ({error}): unpack it into {source.data}"
                    ) from error
                (Path(aside) / cifar.folder).rename(folder)
        source.run.wait()
    names = [line for line in _lines(folder / cifar.names) if line]
    images = cache_directory("cifar") / cache_key(
        {file: _hash(folder / file) for file in (*cifar.train, *cifar.test, cifar.names)}
    )
    if source.run.is_main and not os.path.exists(images):  # noqa: PTH110  # False, too, where it may not be entered
        try:
            _unpack_all(folder, cifar, names, images, source.run)
        except OSError as error:
            images = Path(mkdtemp(prefix="stillroom-")) / cifar.name
            atexit.register(shutil.rmtree, images.parent, ignore_errors=True)
            warn_once(f"{cache_directory('cifar')} cannot be written ({error.strerror}): unpacked into {images}")
            _unpack_all(folder, cifar, names, images, source.run)
    images = source.run.gather(images)[0]
    train = read_labelled(images / "train", names)
    return Splits(train, read_labelled(images / "test", names), cifar.name)


def _unpack_all(folder: Path, cifar: Cifar, names: Sequence[str], images: Path, run: Run) -> None:
    with replace_directory(images) as aside:
        for part, files in (("train", cifar.train), ("test", cifar.test)):
            for file in files:
                _unpack(folder / file, cifar.labels, names, aside / part, run)


def _hash(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error


def _unpack(file: Path, labels: int, names: Sequence[str], out: Path, run: Run) -> None:
    """Write each record as a PNG; the last of its label bytes is the fine label."""
    records = np.fromfile(file, dtype=np.uint8)
    if not len(records) or len(records) % (labels + _PIXELS):
        raise ValueError(
            f"{file} has {len(records)} bytes, which is not a whole number of records of {labels + _PIXELS}"
        )
    records = records.reshape(-1, labels + _PIXELS)
    if records[:, labels - 1].max() >= len(names):
        raise ValueError(f"{file} has label {records[:, labels - 1].max()}, but there are {len(names)} class names")
    progress = Progress(len(records), run, file.name)
    for index, (record,) in enumerate(progress.over([record] for record in records)):
        folder = out / names[record[labels - 1]]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = record[labels:].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{file.stem}-{index:05d}.png", compress_level=1)


def _read_dtd(source: TaskSource) -> Splits:
    """Read Describable Textures (Cimpoi et al., CVPR 2014): train and val of a split against its test."""
    root, split = source.data / "dtd", source.dtd_split
    if not 1 <= split <= 10:
        raise ValueError(f"--dtd-split is {split}: DTD has splits 1 to 10")
    train = [line for part in ("train", "val") for line in _lines(root / "labels" / f"{part}{split}.txt")]
    test = _lines(root / "labels" / f"test{split}.txt")
    classes = tuple(sorted({line.split("/")[0] for line in train}))
    files = [_listed(root / "images", lines, classes, source.partial) for lines in (train, test)]
    return Splits(files[0], files[1], f"dtd split={split}")


def _read_caltech(source: TaskSource) -> Splits:
    """Read Caltech-256 (Griffin et al. 2007): train on some images of each of its 257 folders, test on the others."""
    num_train = source.per_class
    if num_train < 1:
        raise ValueError(f"--caltech-per-class is {num_train}: it must be at least 1")
    root = source.data / "256_ObjectCategories"
    if not root.is_dir():
        raise ValueError(f"there is no {root}: unpack 256_ObjectCategories.tar into {source.data}")
    found, left_out = walk(root)
    by_name: dict[str, list[Path]] = {}
    for path in found:
        if path.parent.parent == root:
            by_name.setdefault(path.parent.name, []).append(path)
        else:  # 056.dog has a folder of other images
            left_out["not in a class folder itself"] = left_out.get("not in a class folder itself", 0) + 1
    classes = tuple(sorted(by_name))
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = by_name[name]
        if len(members) <= num_train:
            raise ValueError(f"{root / name} holds {len(members)} images: more than {num_train} are needed")
        paths += members
        labels += [label] * len(members)
    files = from_paths(paths, root=root, labels=tuple(labels), classes=classes, left_out=left_out)
    if source.first:
        by_class = {label: [i for i, each in enumerate(labels) if each == label] for label in range(len(classes))}
    else:
        by_class = shuffled_by_class(labels, source.seed)
    train = sorted(index for indices in by_class.values() for index in indices[:num_train])
    test = sorted(index for indices in by_class.values() for index in indices[num_train:])
    words = f"caltech256 per-class={num_train} {'first' if source.first else f'seed={source.seed}'}"
    return Splits(files.subset(train), files.subset(test), words)


def _read_cub(source: TaskSource) -> Splits:
    """Read Caltech-UCSD Birds 200-2011 (Wah et al. 2011) in its published split."""
    root = source.data / "CUB_200_2011"
    images, labels, training, names = (
        _numbered(root / file)
        for file in ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    )
    if not images.keys() == labels.keys() == training.keys():
        odd = sorted(images.keys() ^ labels.keys() | images.keys() ^ training.keys(), key=int)
        raise ValueError(f"{root}: the three lists of images differ in {len(odd)} numbers, the first is {odd[0]}")
    classes = tuple(names[number] for number in sorted(names, key=int))
    for number, name in images.items():
        if names.get(labels[number]) != name.split("/")[0]:
            raise ValueError(
                f"{root}: image {number} is {name}, its class {labels[number]} is {names.get(labels[number])}"
            )
    train, test = (
        _listed(
            root / "images",
            [name for number, name in images.items() if training[number] == flag],
            classes,
            source.partial,
        )
        for flag in ("1", "0")
    )
    return Splits(train, test, "cub")


def _numbered(file: Path) -> dict[str, str]:
    """Read the lines `<number> <text>` of a file.

    Raises:
        ValueError: a line of another form.
    """
    pairs = [line.split(maxsplit=1) for line in _lines(file)]
    if bad := next((line for line, pair in enumerate(pairs, 1) if len(pair) != 2 or not pair[0].isdecimal()), None):
        raise ValueError(f"{file}: line {bad} is not a number and a name")
    return {number: text for number, text in pairs}


def _lines(file: Path) -> list[str]:
    """Read the lines of a text file, without empty ones at its beginning and end.

    Raises:
        ValueError: no such file, or not text.
    """
    try:
        return file.read_text(encoding="utf-8").strip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file: {error.reason}") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): the published folder holds it") from error


def _listed(root: Path, names: Iterable[str], classes: Sequence[str], partial: bool) -> Source:
    """Find the listed images `<class>/<image>` below a folder.

    Raises:
        ValueError: some are missing, without `partial`; or all are.
    """
    paths = [root / name for name in names]
    existing = [path for path in paths if path.is_file()]
    if len(existing) < len(paths) and (not partial or not existing):
        absent = next(path for path in paths if not path.is_file())
        raise ValueError(
            f"{root} lacks {len(paths) - len(existing)} of {len(paths)} listed images, the first is {absent}"
        )
    if unknown := sorted({path.parent.name for path in existing} - set(classes)):
        raise ValueError(f"{root}: class {unknown[0]} has listed test images, but no training images")
    if empty := sorted(set(classes) - {path.parent.name for path in existing}):
        raise ValueError(f"{root}: every listed image of class {empty[0]} is missing")
    labels = tuple(classes.index(path.parent.name) for path in existing)
    return from_paths(existing, root=root, labels=labels, classes=tuple(classes))
