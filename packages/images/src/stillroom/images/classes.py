"""Classes of images: by their folders or by labels of their own, and what is refused of them."""

import os
from array import array
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stillroom.images.source import Source, as_labels

SPLITS = frozenset({"train", "training", "trainval", "val", "valid", "validation", "dev", "test", "testing"})


def label_by_folder(
    source: Source, classes: Sequence[str] | None = None, folders: Sequence[str] | None = None
) -> Source:
    """Label images by the first folder of their names, `<class>/<image>`, and order them by class.

    Args:
        source: the images.
        classes: the expected classes (those of the training set), in label order; None: the folders, sorted.
        folders: all class folders, those without images too; None: those of the names.

    Raises:
        ValueError: no class folders, images beside them, a class without images or with images in subfolders only,
            classes that differ.
    """
    root, numbers, found = source.root, array("i"), {name: i for i, name in enumerate(folders or ())}
    direct, below = set[int](), set[int]()  # folders with images in them, and in their subfolders
    loose: list[str] = []
    for name in source.listing.names(source.rows):
        first, slash, rest = os.fsdecode(name).partition("/")
        if not slash:
            loose.append(first)
            continue
        number = found.setdefault(first, len(found))
        numbers.append(number)
        (below if "/" in rest else direct).add(number)
    if not found:
        raise ValueError(f"{root} holds no class folders: expected {root.name}/<class>/<image>")
    if loose:
        raise ValueError(f"{root} holds {len(loose)} images beside its class folders, the first is {loose[0]}")
    names, counts = sorted(found), np.bincount(np.frombuffer(numbers, np.int32), minlength=len(found))
    refuse_parts(root, names, [name for name in names if found[name] in below], is_training=classes is None)
    refuse_nested(root, [name for name in names if counts[found[name]] and found[name] not in direct])
    if classes is not None:
        refuse_other_classes(root, names, classes)
    classes = tuple(classes or names)
    if empty := [name for name in classes if not counts[found[name]]]:
        raise ValueError(f"class folder {root / empty[0]} holds no images")
    label_of = np.empty(len(found), np.int32)
    label_of[[found[name] for name in classes]] = np.arange(len(classes))
    return by_class(replace(source, labels=as_labels(label_of[np.frombuffer(numbers, np.int32)]), classes=classes))


def by_class(source: Source) -> Source:
    """Labelled images in the order of their classes, and of each class as they were."""
    labels = np.asarray(source.labels, np.int32)
    return source if (np.diff(labels) >= 0).all() else source.subset(np.argsort(labels, kind="stable"))


def with_classes(source: Source, classes: Sequence[str] | None) -> Source:
    """Images with labels of their own, as indices of `classes` (None: of their own), in the order of the labels.

    Raises:
        ValueError: other classes, or one without images.
    """
    counts = np.bincount(np.asarray(source.labels, np.int32), minlength=len(source.classes))
    if classes is not None:
        refuse_other_classes(source.root, source.classes, classes)
    if empty := [name for name, count in zip(source.classes, counts, strict=True) if not count]:
        raise ValueError(f"{source.root} has no images of class {empty[0]}")
    classes = tuple(classes or source.classes)
    label_of = np.array([classes.index(name) for name in source.classes], np.int32)
    return by_class(replace(source, labels=as_labels(label_of[np.asarray(source.labels)]), classes=classes))


def refuse_parts(root: Path, names: Sequence[str], deep: Sequence[str], *, is_training: bool) -> None:
    """Raise ValueError for the parts of a data set in place of classes: by folders in them, or by all names."""
    splits = [name for name in names if name.lower() in SPLITS]
    if {*splits} & {*deep} or (splits == list(names) and len(names) > 1):
        of_role = [name for name in splits if name.lower().startswith("train") == is_training]
        holds = " and ".join(f"{name}/" for name in splits)
        raise ValueError(f"{root} holds {holds}: pass {root / (of_role or splits)[0]}")


def refuse_nested(root: Path, nested: Sequence[str]) -> None:
    """Raise ValueError for class folders that hold only folders."""
    if nested:
        raise ValueError(
            f"class folder {root / nested[0]} holds only folders: expected {root.name}/<class>/<image>; "
            f"pass the folder of the class folders, or move the images up"
        )


def refuse_other_classes(root: Path, names: Collection[str], classes: Collection[str]) -> None:
    """Raise ValueError if the classes differ from the training set's."""
    lacks, extra = sorted({*classes} - {*names}), sorted({*names} - {*classes})
    if lacks or extra:
        raise ValueError(f"the classes of {root} differ from the training set's: missing {lacks}, extra {extra}")
