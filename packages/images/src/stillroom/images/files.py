"""Read the images that a path names: a folder, a file list, a table, archives, a data set. No image is decoded."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stillroom.images.classes import label_by_folder, with_classes
from stillroom.images.folder import read_folder
from stillroom.images.formats import is_hidden, suffix
from stillroom.images.hub import FILES, read_dataset
from stillroom.images.labels import USUAL, Columns
from stillroom.images.lists import TABLES, read_rows
from stillroom.images.remote import read_remote_folder
from stillroom.images.source import Source, from_paths
from stillroom.images.storage import LocalStorage, RemoteStorage, Storage, address, local_path, refusing
from stillroom.images.tars import expand, read_shards, shards_in
from stillroom.images.zips import read_zip

FILE_KINDS = frozenset({".txt", ".tar", ".zip", *TABLES})
"""Suffixes of the files that are sources."""


def refuse_missing_folder(folder: Path) -> None:
    """Raise ValueError if there is no such folder; or file, by its suffix."""
    if not folder.is_dir():
        what = "file" if suffix(folder.name) in FILE_KINDS else "folder"
        raise ValueError(f"there is no {what} {folder}")


def refuse_missing_images(source: Path) -> None:
    """Raise ValueError if there is no such source of images; its contents are not read, and no address is asked."""
    if address(source) is not None:
        return
    place = local_path(source)
    for path in expand(str(place)):
        if not Path(path).is_file():
            refuse_missing_folder(Path(path))


def read_unlabelled(source: str | Path, columns: Columns = USUAL) -> Source:
    """List the images of a source, in a fixed order.

    A source is one of

    - a folder: every image below it, in the order of their paths;
    - a file list: a text file, one path per line, relative to the list's own folder or absolute; `#` begins a comment;
    - a table (.csv, .tsv, .parquet): such paths in a column;
    - tar shards: a .tar file, a folder of them, or a pattern such as `shards/{000..011}.tar`;
    - a .zip file: every image in it, in the order of their paths;
    - a folder that `datasets` of Hugging Face saved (`save_to_disk`), with a column of images.

    Each of them but the last may lie at an address of fsspec, such as s3://bucket/folder.

    Raises:
        ValueError: missing or empty source, or listed files that do not exist; see also the readers of each kind.
    """
    files = read_source(source, columns, labelled=False)
    if not len(files):
        raise ValueError(f"{files.root} holds no images, in subfolders neither: expected a format that Pillow decodes")
    return files


def read_source(source: str | Path, columns: Columns, *, labelled: bool) -> Source:
    """List the images of a source; with the labels that it holds itself, if they are wanted and there are any."""
    if (place := address(source)) is None:
        return _read_from(str(local_path(source)), LocalStorage(), columns, labelled)
    with refusing(place):
        return _read_from(place, RemoteStorage(), columns, labelled)


def _read_from(place: str, storage: Storage, columns: Columns, labelled: bool) -> Source:
    root, is_here = Path(place), isinstance(storage, LocalStorage)
    kind = suffix(root.name)
    if kind == ".tar" and not (is_here and root.is_dir()):
        shards = expand(place)
        if is_here:
            refuse_missing_images(root)
        return read_shards(root, shards, storage, labelled=labelled)
    if kind == ".zip" and storage.exists(place):
        return read_zip(place, storage)
    if kind in {".txt", *TABLES} or storage.exists(place):
        if is_here and not root.is_file():
            refuse_missing_folder(root)
        else:
            return read_rows(place, storage, columns, labelled=labelled)
    if is_here:
        refuse_missing_folder(root)
    if is_here and any((root / name).is_file() for name in FILES):
        return read_dataset(root, columns, labelled=labelled)
    if shards := shards_in(storage.entries(place)):
        return read_shards(root, [f"{place.rstrip('/')}/{name}" for name in shards], storage, labelled=labelled)
    return read_folder(root) if is_here else read_remote_folder(place)


def read_images(images: Path, columns: Columns = USUAL) -> Source:
    """List one image, or those of a source; see `read_unlabelled`."""
    is_image = images.is_file() and suffix(images.name) not in FILE_KINDS
    return from_paths([images.resolve()]) if is_image else read_unlabelled(images, columns)


def png_names(files: Source) -> list[Path]:
    """The relative path of the PNG that is written for each image; ValueError if two images would share one."""
    names = [Path(files.name(index)).with_suffix(".png") for index in range(len(files))]
    if outside := next((name for name in names if ".." in name.parts or name.is_absolute()), None):
        raise ValueError(f"an image of {files.root} would give the PNG {outside}, outside of the folder: rename it")
    if len({*names}) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"two images of {files.root} would share the PNG {twice}: rename one of them")
    return names


def read_labelled(source: str | Path, classes: Sequence[str] | None = None, columns: Columns = USUAL) -> Source:
    """List the images of a source by class: with the labels that it holds, else by the folders, `<class>/<image>`.

    Args:
        source: see `read_unlabelled`.
        classes: the expected classes (those of the training set), in label order; None: those of the source, sorted.
        columns: of a table.

    Raises:
        ValueError: missing or empty source, no class folders, images beside them, a class without images or with images
            in subfolders only, classes that differ.
    """
    files = read_source(source, columns, labelled=True)
    if files.labels is not None:
        return with_classes(files, classes)
    folders = None
    if (root := local_path(source)).is_dir():
        folders = [entry.name for entry in root.iterdir() if not is_hidden(entry.name) and entry.is_dir()]
    return label_by_folder(files, classes, folders)


def shuffled_by_class(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    """The indices of each class's images, in a random order given by seed and class: any first ones are a sample."""
    indices: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for index, label in enumerate(labels):
        indices[label].append(index)
    return {
        label: np.random.default_rng([seed, label]).permutation(members).tolist() for label, members in indices.items()
    }
