"""The readers that tools/fuzz.py feeds, each with valid files from which mutations start."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

import fuzz_run_targets
from fuzz_files import Target
from stillroom.backbone import InputSpec, build_backbone, load_checkpoint, save_checkpoint, verify_checkpoint
from stillroom.backbone.manifest import MANIFEST, MODEL
from stillroom.backbone.provenance import made_by
from stillroom.convert import read_state
from stillroom.convert.key_rules import PLAIN, wrapped
from stillroom.convert.keys import rename
from stillroom.det_transfer.coco import read_coco
from stillroom.det_transfer.voc import ImageList, read_voc
from stillroom.distill.config import UNIONS, DistillConfig
from stillroom.distill.presets import kdep
from stillroom.images import EvaluationView, read_labelled, read_unlabelled
from stillroom.images.decode import load_image
from stillroom.runs import Results, Run, RunDirectory, read_results, write_results
from stillroom.runs.configs import config_from_json, config_to_json
from stillroom.runs.results import RESULTS, CheckpointRecord, DatasetRecord
from stillroom.runs.run_files import CONFIG, read_config
from stillroom.seg_transfer.data import read_folder

NET = "cifar/resnet20"

torch.set_num_threads(1)  # a thread pool that was used does not survive the fork of a reader's process


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _picture(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _images() -> list[bytes]:
    """Valid images of many formats and modes."""
    picture = _picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 100)
    contents = [
        _encoded(picture, form) for form in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "JPEG2000")
    ]
    contents += [_encoded(picture, "JPEG", exif=exif, quality=90), _encoded(picture, "JPEG", progressive=True)]
    contents += [_encoded(deep, form) for form in ("PNG", "TIFF")]
    contents += [_encoded(picture.convert(mode), "PNG") for mode in ("L", "LA", "P", "1", "RGBA")]
    contents += [_encoded(picture.convert(mode), "TIFF", compression="tiff_lzw") for mode in ("L", "CMYK")]
    contents.append(_encoded(Image.fromarray(np.asarray(picture.convert("L"), np.float32) / 255), "TIFF"))
    return contents


def image(folder: Path) -> Target:
    """An image, through the evaluation view."""
    view, file = EvaluationView(InputSpec(size=32)), folder / "image.png"
    return Target("image", file, _images(), lambda: view(load_image(file)))


def mask(folder: Path) -> Target:
    """A mask of segmentation, beside its image."""
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        (folder / "images" / part / "a.png").write_bytes(_encoded(_picture(), "PNG"))
    (folder / "classes.txt").write_text("ground\nshape\n")
    indices = Image.fromarray(np.random.default_rng(0).integers(0, 2, (16, 24), dtype=np.uint8))
    palette = indices.convert("P")
    contents = [_encoded(indices, "PNG"), _encoded(palette, "PNG", bits=1), _encoded(palette, "PNG", bits=4)]
    (folder / "labels" / "val" / "a.png").write_bytes(contents[0])
    return Target("mask", folder / "labels" / "train" / "a.png", contents, lambda: read_folder(folder))


def class_names(folder: Path) -> Target:
    """The class names of a segmentation folder."""
    target = mask(folder)
    target.file.write_bytes(target.contents[0])
    return Target("class_names", folder / "classes.txt", [b"ground\nshape\n", b"a\r\nb\r\n"], target.read, is_text=True)


def coco(folder: Path) -> Target:
    """A COCO JSON, with masks."""
    (folder / "a.png").write_bytes(_encoded(_picture(), "PNG"))
    polygon = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]
    box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 8.5, 7], "area": 30.0, "iscrowd": 0}
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 24, "height": 16}],
        "annotations": [box | {"segmentation": polygon}, box | {"id": 2, "bbox": [0, 0, 24, 16], "area": 384}],
        "categories": [{"id": 3, "name": "cell"}, {"id": 5, "name": "dot"}],
    }
    contents = [json.dumps(content).encode(), json.dumps(content, indent=1).encode("utf-8-sig")]
    file = folder / "boxes.json"
    return Target("coco", file, contents, lambda: read_coco(file, folder, "skip", masks=True), is_text=True)


def voc(folder: Path) -> Target:
    """An XML of VOC."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "JPEGImages" / "a.jpg").write_bytes(_encoded(_picture(), "JPEG"))
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>16</ymax></bndbox>"
    sizes = "<size><width>24</width><height>16</height><depth>3</depth></size>"
    item = f"<object><name>cell</name><difficult>0</difficult>{box}</object>"
    xml = f"<annotation><filename>a.jpg</filename>{sizes}{item}{item}</annotation>".encode()
    lists = [ImageList(folder, "train")]
    file = folder / "Annotations" / "a.xml"
    contents = [xml, b'<?xml version="1.0" encoding="utf-8"?>\n' + xml]
    return Target("voc", file, contents, lambda: read_voc(lists, ("cell",), "skip"), is_text=True)


def file_list(folder: Path) -> Target:
    """A text file of image paths."""
    (folder / "a.png").write_bytes(_encoded(_picture(), "PNG"))
    file = folder / "list.txt"
    return Target("file_list", file, [b"a.png\n", b"a.png\r\n./a.png\n"], lambda: read_unlabelled(file), is_text=True)


def class_folder(folder: Path) -> Target:
    """A folder of classes, one of whose images is mutated."""
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "b" / "b.png").write_bytes(_encoded(_picture(), "PNG"))
    file, view = folder / "a" / "a.png", EvaluationView(InputSpec(size=16))
    return Target(
        "class_folder", file, _images(), lambda: [view(load_image(path)) for path in read_labelled(folder).paths]
    )


def _checkpoint(folder: Path) -> Path:
    save_checkpoint(folder / "net", build_backbone(NET), method="kdep", package="stillroom-distill")
    return folder / "net"


def manifest(folder: Path) -> Target:
    """The manifest of a checkpoint."""
    path = _checkpoint(folder)
    contents = [(path / MANIFEST).read_bytes()]
    return Target("manifest", path / MANIFEST, contents, lambda: load_checkpoint(path), is_text=True)


def weights(folder: Path) -> Target:
    """The weights of a checkpoint whose manifest has their hash, as a hostile one would."""
    path = _checkpoint(folder)
    file, listed = path / MODEL, json.loads((path / MANIFEST).read_text())

    def read() -> None:
        content = file.read_bytes()
        record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        listed["files"][MODEL] = record
        (path / MANIFEST).write_text(json.dumps(listed))
        verify_checkpoint(path)
        load_checkpoint(path)

    return Target("weights", file, [file.read_bytes()], read)


def _read_weights(file: Path) -> None:
    state = read_state(file)
    rename(state, wrapped(PLAIN, state), str(file))


def weight_file(folder: Path) -> Target:
    """A file of another project: safetensors."""
    file = folder / "net.safetensors"
    tensors = {"module.conv.weight": torch.ones(2, 3), "fc.bias": torch.ones(2).half()}
    return Target("weight_file", file, [save(tensors)], lambda: _read_weights(file))


def pickled_weights(folder: Path) -> Target:
    """A file of another project: a pickled state dict."""
    file, contents = folder / "net.pth", []
    tensors = {"module.conv.weight": torch.ones(2, 3), "fc.bias": torch.ones(2).half()}
    for content in (tensors, {"state_dict": tensors, "epoch": 3, "args": {"lr": 0.1}}):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        contents.append(buffer.getvalue())
    return Target("pickled_weights", file, contents, lambda: _read_weights(file))


def config(folder: Path) -> Target:
    """The config.json of a distillation run."""
    nets = {"teacher": ("timm/resnet18",), "student": (NET,)}
    text = config_to_json(kdep(**nets, data=folder, out=folder / "run"), UNIONS).encode()
    file = folder / CONFIG

    def read() -> None:
        config_from_json(read_config(folder), DistillConfig, UNIONS)

    return Target("config", file, [text], read, is_text=True)


def state(folder: Path) -> Target:
    """The state that a run is resumed from."""
    run = Run(device=torch.device("cpu"))
    path = folder / "run"
    directory = RunDirectory.create(path, "{}", run)
    directory.log(1, {"loss": 0.5})
    directory.save_state({"step": 1, "student": {"weight": torch.ones(3, 2)}, "order": [1, 2]})
    directory.close()
    file = path / "state" / "last.pt"
    return Target("state", file, [file.read_bytes()], lambda: RunDirectory.reopen(path, run)[0].close())


def results(folder: Path) -> Target:
    """A results.json."""
    dataset = DatasetRecord(path="train", count=3, fingerprint="ab")
    checkpoint = CheckpointRecord(path="student", sha256="cd", method="kdep")
    measured = Results(
        task="knn",
        protocol="knn/v1 k=10",
        datasets={"train": dataset},
        checkpoint=checkpoint,
        metrics={"top1_k10": 0.5},
        seed=0,
        seconds=1.5,
        made_by=made_by("stillroom-eval-ssl"),
    )
    write_results(folder, measured)
    file = folder / RESULTS
    return Target("results", file, [file.read_bytes()], lambda: read_results(file), is_text=True)


BUILDERS: tuple[Callable[[Path], Target], ...] = (
    *(image, mask, class_names, coco, voc, file_list, class_folder),
    *(manifest, weights, weight_file, pickled_weights, config, state, results),
    *fuzz_run_targets.BUILDERS,
)
TARGETS = {build.__name__: build for build in BUILDERS}
"""Readers by name."""
