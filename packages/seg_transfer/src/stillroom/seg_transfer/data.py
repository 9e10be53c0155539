"""Images with masks: a folder of them, or a published data set as MMSegmentation lays it out."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.datasets import ADE20KDataset, BaseSegDataset, CityscapesDataset, PascalVOCDataset
from mmseg.registry import DATASETS

from stillroom.backbone.atomic import refuse_missing
from stillroom.backbone.errors import keeps_traceback
from stillroom.images.folder import walk
from stillroom.images.source import count_shared, from_paths
from stillroom.runs.results import DatasetRecord
from stillroom.seg_transfer.config import Layout, SegmentConfig, check_source
from stillroom.seg_transfer.masks import IGNORED, PartMasks, absent_classes, check_classes, check_masks


@dataclass(frozen=True, kw_only=True)
class MaskedImages:
    """Images with masks, as a config of MMSegmentation's data set.

    Args:
        config: of the data set, without its pipeline.
        root: folder of the data set.
        pairs: (image, mask) files.
        left_out: other files of the folders of images and masks, by reason.
        in_train: images that are training images too, byte for byte; None: not compared.
    """

    config: dict[str, Any]
    root: Path
    pairs: Sequence[tuple[Path, Path]]
    left_out: Mapping[str, int] = field(default_factory=dict)
    in_train: int | None = None

    @property
    def record(self) -> DatasetRecord:
        """The record for results.json; its fingerprint covers images and masks."""
        files = from_paths([file for both in self.pairs for file in both], root=self.root)
        return DatasetRecord(
            path=str(self.root),
            count=len(self.pairs),
            fingerprint=files.fingerprint,
            content=files.content,
            left_out=dict(self.left_out),
            in_train=self.in_train,
        )


@dataclass(frozen=True, kw_only=True)
class SegmentationData:
    """The data of a run.

    Args:
        classes: names, in the order of the mask's indices.
        train, val: training images, and the images that are evaluated.
        words: their description, for the protocol id.
        zero_ignored: index 0 of the masks is not a class, index 1 is the first (ADE20K).
        notes: what the user has to know of the masks, sentences.
        absent_from_val: classes without a pixel in the validation masks.
    """

    classes: tuple[str, ...]
    train: MaskedImages
    val: MaskedImages
    words: str
    zero_ignored: bool = False
    notes: tuple[str, ...] = ()
    absent_from_val: tuple[str, ...] = ()

    @property
    def records(self) -> dict[str, DatasetRecord]:
        """The records for results.json, by role."""
        return {"train": self.train.record, "test": self.val.record}


@dataclass(frozen=True, kw_only=True)
class Published:
    """The layout and size of a published data set.

    Args:
        dataset: MMSegmentation's class.
        train, val: its `data_prefix` and `ann_file`, relative to the data set's folder.
        counts: training and validation images.
    """

    dataset: type[BaseSegDataset]
    train: tuple[Mapping[str, Any], ...]
    val: Mapping[str, Any]
    counts: tuple[int, int]


def _voc(masks: str, names: str) -> dict[str, Any]:
    prefix = {"img_path": "JPEGImages", "seg_map_path": masks}
    return {"data_prefix": prefix, "ann_file": f"ImageSets/Segmentation/{names}.txt"}


def _parts(images: str, masks: str, part: str) -> dict[str, Any]:
    return {"data_prefix": {"img_path": f"{images}/{part}", "seg_map_path": f"{masks}/{part}"}}


_VOC_TRAIN, _VOC_VAL = _voc("SegmentationClass", "train"), _voc("SegmentationClass", "val")
PUBLISHED: dict[Layout, Published] = {
    "voc2012": Published(dataset=PascalVOCDataset, train=(_VOC_TRAIN,), val=_VOC_VAL, counts=(1464, 1449)),
    "voc2012aug": Published(
        dataset=PascalVOCDataset,
        train=(_VOC_TRAIN, _voc("SegmentationClassAug", "aug")),
        val=_VOC_VAL,
        counts=(10_582, 1449),
    ),
    "cityscapes": Published(
        dataset=CityscapesDataset,
        train=(_parts("leftImg8bit", "gtFine", "train"),),
        val=_parts("leftImg8bit", "gtFine", "val"),
        counts=(2975, 500),
    ),
    "ade20k": Published(
        dataset=ADE20KDataset,
        train=(_parts("images", "annotations", "training"),),
        val=_parts("images", "annotations", "validation"),
        counts=(20_210, 2000),
    ),
}


@DATASETS.register_module()
class StillroomSegDataset(BaseSegDataset):
    """Image files ROOT/images/PART, each with the mask of the same name in ROOT/labels/PART.

    Args:
        data_root: ROOT.
        part: `train` or `val`.
        arguments: of BaseSegDataset.
    """

    def __init__(self, *, data_root: str, part: str, **arguments: Any) -> None:
        self.part = part
        super().__init__(data_root=data_root, **arguments)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Describe each image as BaseSegDataset does."""
        common: dict[str, Any] = {"label_map": None, "reduce_zero_label": False, "seg_fields": []}
        return [
            {"img_path": str(image), "seg_map_path": str(mask), **common}
            for image, mask in pair(Path(self.data_root), self.part)
        ]


def read_data(config: SegmentConfig) -> SegmentationData:
    """Find the images of a run, and check their masks.

    Raises:
        ValueError: missing folders, masks or class names, and masks that do not fit, by name.
    """
    check_source(config)
    assert config.data is not None
    return compare(
        read_folder(config.data)
        if config.layout == "folder"
        else read_published(config.layout, config.data, config.partial)
    )


def compare(data: SegmentationData) -> SegmentationData:
    """Count the validation images that are training images too, and warn of them."""
    train, val = ([image for image, _ in part.pairs] for part in (data.train, data.val))
    return replace(data, val=replace(data.val, in_train=count_shared(train, val, data.val.root)))


def read_framework_config(file: Path) -> Config:
    """Read a user's config file.

    Raises:
        ValueError: no such file, or not a whole config of a segmentation model and its data.
    """
    refuse_missing(file)
    try:
        user = Config.fromfile(str(file), format_python_code=False)
    except Exception as error:  # a Python program may raise any class
        if keeps_traceback(error):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{file} cannot be read as a config of MMEngine: {reason[-1]}") from error
    parts = (
        "model",
        "train_dataloader",
        "test_dataloader",
        "test_pipeline",
        "test_evaluator",
        "train_cfg",
        "optim_wrapper",
    )
    for name in parts:
        if user.get(name) is None:
            raise ValueError(f"{file} has no {name}: a whole config of MMSegmentation was expected")
    if not isinstance(user.model, dict) or not (user.model.get("backbone") or {}).get("type"):
        raise ValueError(f"{file} has no model.backbone with a type: a whole config of MMSegmentation was expected")
    if not isinstance(user.test_evaluator, dict) or user.test_evaluator.get("prefix"):
        raise ValueError(f"{file} needs one test_evaluator without prefix: an IoUMetric")
    return user


def digest(user: Config) -> str:
    """Hash a config together with what it inherits."""
    return sha256(json.dumps(user.to_dict(), sort_keys=True, default=str).encode()).hexdigest()


def read_framework(resolved: Config) -> SegmentationData:
    """Read the images that a config of MMSegmentation names.

    Raises:
        ValueError: missing files.
    """
    init_default_scope(resolved.get("default_scope") or "mmseg")  # the registry in which its transforms are looked up
    parts: dict[str, MaskedImages] = {}
    classes: tuple[str, ...] = ()
    zero_ignored = False
    for role in ("train", "test"):
        settings = resolved[f"{role}_dataloader"].dataset
        try:
            dataset = DATASETS.build(settings)
        except Exception as error:  # user code may raise any class
            if keeps_traceback(error):
                raise
            reason = str(error).splitlines() or [type(error).__name__]
            raise ValueError(f"the {role} images of {resolved.filename} cannot be read: {reason[0]}") from error
        rows = [dataset.get_data_info(index) for index in range(len(dataset))]
        pairs = [(Path(row["img_path"]), Path(row["seg_map_path"])) for row in rows]
        if not pairs:
            raise ValueError(f"{resolved.filename} names no {role} images: check its data_root")
        if missing := next((file for both in pairs for file in both if not file.is_file()), None):
            raise ValueError(f"there is no {missing}, which the {role} images of {resolved.filename} need")
        root = Path(os.path.commonpath([file.parent for both in pairs for file in both]))
        parts[role] = MaskedImages(config=dict(settings), root=root, pairs=pairs)
        classes, zero_ignored = tuple(dataset.metainfo["classes"]), bool(rows[0]["reduce_zero_label"])
    words = f"framework-config={Path(resolved.filename).name} sha256={digest(resolved)[:12]}"
    return SegmentationData(
        classes=classes, train=parts["train"], val=parts["test"], words=words, zero_ignored=zero_ignored
    )


def read_folder(root: Path) -> SegmentationData:
    """Read a folder of images with index masks.

    Raises:
        ValueError: see `read_data`.
    """
    classes = read_classes(root / "classes.txt")
    parts: dict[str, MaskedImages] = {}
    masks: dict[str, PartMasks] = {}
    for part in ("train", "val"):
        pairs = pair(root, part)
        masks[part] = check_masks(pairs, len(classes))
        settings = {
            "type": "StillroomSegDataset",
            "data_root": str(root),
            "part": part,
            "metainfo": {"classes": classes},
        }
        left_out = Counter[str]()
        for kind in ("images", "labels"):  # what a folder of masks holds beside PNGs is left out too
            left_out.update(walk(root / kind / part, {".png"} if kind == "labels" else None)[1])
        parts[part] = MaskedImages(config=settings, root=root, pairs=pairs, left_out=left_out)
    notes = check_classes(root, classes, masks)
    return SegmentationData(
        classes=classes,
        train=parts["train"],
        val=parts["val"],
        words="",
        notes=notes,
        absent_from_val=absent_classes(classes, masks["val"]),
    )


def read_classes(file: Path) -> tuple[str, ...]:
    """Read the class names, one per line; line 1 is index 0.

    Raises:
        ValueError: no such file, fewer than two names, too many for 8 bits, or a name twice.
    """
    if not file.is_file():
        raise ValueError(
            f"there is no {file}: it must name the classes, one per line, the first for index 0 of the masks"
        )
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    classes = tuple(line.strip() for line in lines if line.strip())
    if not 2 <= len(classes) <= IGNORED:
        raise ValueError(f"{file} names {len(classes)} classes: 2 to {IGNORED} were expected")
    if twice := next((name for name in classes if classes.count(name) > 1), None):
        raise ValueError(f"{file} names {twice} twice")
    return classes


def pair(root: Path, part: str) -> list[tuple[Path, Path]]:
    """Pair every image of a part with its mask, in the order of their names.

    Raises:
        ValueError: no folder, no image, two images of one name, an image without a mask, or a mask without an image.
    """
    images, masks = root / "images" / part, root / "labels" / part
    for folder in (images, masks):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: {root} needs images/{part} and labels/{part}")
    by_name: dict[str, Path] = {}
    for file in walk(images)[0]:
        name = file.relative_to(images).with_suffix("").as_posix()
        if name in by_name:
            raise ValueError(f"{by_name[name]} and {file} would share one mask: rename one of them")
        by_name[name] = file
    mask_by_name = {f.relative_to(masks).with_suffix("").as_posix(): f for f in walk(masks, {".png"})[0]}
    if not by_name:
        raise ValueError(f"{images} holds no image of a format that Pillow decodes")
    if missing := by_name.keys() - mask_by_name.keys():
        raise ValueError(f"{len(missing)} images have no mask in {root} ({part}), the first is {min(missing)}")
    if missing := mask_by_name.keys() - by_name.keys():
        raise ValueError(f"{len(missing)} masks have no image in {root} ({part}), the first is {min(missing)}")
    return [(file, mask_by_name[name]) for name, file in by_name.items()]


def read_published(layout: Layout, root: Path, partial: bool) -> SegmentationData:
    """Read a published data set, and count its images.

    Raises:
        ValueError: see `read_data`; fewer images than were published, unless `--partial`.
    """
    published = PUBLISHED[layout]
    name = published.dataset.__name__
    parts = [{"type": name, "data_root": str(root), **part} for part in (*published.train, published.val)]
    lists = [list_pairs(published.dataset, part) for part in parts]
    train, val = [both for pairs in lists[:-1] for both in pairs], lists[-1]
    counts = (len(train), len(val))
    if counts != published.counts and not partial:
        raise ValueError(
            f"{root} holds {counts[0]} training and {counts[1]} validation images of {layout}, "
            f"{published.counts[0]} and {published.counts[1]} were published: complete it, or pass --partial"
        )
    if shared := {image for image, _ in train} & {image for image, _ in val}:
        raise ValueError(
            f"{root} lists {len(shared)} images both for training and validation, the first is {min(shared)}"
        )
    classes = tuple(published.dataset.METAINFO["classes"])
    first = int(layout == "ade20k")  # its label 0 is not a class
    masks = {part: check_masks(pairs, len(classes) + first) for part, pairs in (("train", train), ("val", val))}
    notes = check_classes(root, classes, masks, first=first, partial=partial)
    settings = parts[0] if len(parts) == 2 else {"type": "ConcatDataset", "datasets": parts[:-1]}
    return SegmentationData(
        classes=classes,
        train=MaskedImages(config=settings, root=root, pairs=train),
        val=MaskedImages(config=parts[-1], root=root, pairs=val),
        words=layout + (" partial" if counts != published.counts else ""),
        zero_ignored=layout == "ade20k",
        notes=notes,
        absent_from_val=absent_classes(classes, masks["val"], first),
    )


def list_pairs(dataset: type[BaseSegDataset], settings: Mapping[str, Any]) -> list[tuple[Path, Path]]:
    """List the (image, mask) files that MMSegmentation's data set finds.

    Raises:
        ValueError: a missing folder, list, image or mask, by name.
    """
    root = Path(settings["data_root"])
    paths = [root / settings["data_prefix"][key] for key in ("img_path", "seg_map_path")]
    if "ann_file" in settings:
        paths.append(root / settings["ann_file"])
    if missing := next((path for path in paths if not path.exists()), None):
        raise ValueError(
            f"there is no {missing}: {root} does not have the layout of MMSegmentation's {dataset.__name__}"
        )
    arguments = {key: value for key, value in settings.items() if key != "type"}
    pairs = [
        (Path(row["img_path"]), Path(row["seg_map_path"]))
        for row in dataset(**arguments, serialize_data=False).data_list
    ]
    if missing := next((file for both in pairs for file in both if not file.is_file()), None):
        raise ValueError(f"there is no {missing}, which a list in {root} names")
    return pairs
