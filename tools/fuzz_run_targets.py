"""More readers that tools/fuzz.py feeds: the files of runs, of their frameworks, and of alignments."""

import hashlib
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from fuzz_files import Target
from stillroom.backbone import build_backbone, save_checkpoint, verify_checkpoint
from stillroom.backbone.checkpoint import load_heads
from stillroom.backbone.heads import build_head
from stillroom.backbone.manifest import HEADS, MANIFEST, Head
from stillroom.distill.alignment_file import (
    AlignmentInputs,
    build_alignment,
    encode_alignments,
    import_kdep_alignment,
    load_alignments,
)
from stillroom.distill.feature_file import read_feature_file
from stillroom.distill.slots import SvdPts
from stillroom.images import read_unlabelled
from stillroom.runs import Run, RunDirectory
from stillroom.runs.inputs import Input, record_inputs, record_moved, refuse_changed_inputs
from stillroom.runs.run_files import CONFIG, INPUTS, METRICS
from stillroom.seg_transfer.states import load_state


def _saved(content: Any, save: Callable[[Any, Any], object] = torch.save) -> bytes:
    buffer = io.BytesIO()
    save(content, buffer)
    return buffer.getvalue()


def inputs(folder: Path) -> Target:
    """The hashes of what a run began with."""
    began = {"images": Input("the images", "ab")}
    record_inputs(folder, began)
    file = folder / INPUTS
    contents = [file.read_bytes()]

    def read() -> None:
        refuse_changed_inputs(folder, began)
        record_moved(folder, {"data": str(folder)})

    return Target("inputs", file, contents, read, is_text=True)


def metrics(folder: Path) -> Target:
    """The log lines of a run that is resumed."""
    (folder / CONFIG).write_text("{}")
    lines = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null, "not_finite": {"loss": "NaN"}}\n'
    run = Run(device=torch.device("cpu"))
    return Target("metrics", folder / METRICS, [lines], lambda: RunDirectory.reopen(folder, run)[0].close(), True)


def heads(folder: Path) -> Target:
    """The heads of a checkpoint whose manifest has their hash, as a hostile one would."""
    path, head = folder / "net", Head(kind="linear", in_dim=64, out_dim=2)
    tensors = {"weight": torch.ones(2, 64), "bias": torch.ones(2)}
    net = build_backbone("cifar/resnet20")
    save_checkpoint(path, net, method="kdep", package="stillroom-distill", heads={"classifier": (head, tensors)})
    file, listed = path / HEADS, json.loads((path / MANIFEST).read_text())

    def read() -> None:
        content = file.read_bytes()
        listed["files"][HEADS] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (path / MANIFEST).write_text(json.dumps(listed))
        verify_checkpoint(path)
        build_head(head, load_heads(path, "classifier"))

    return Target("heads", file, [file.read_bytes()], read)


def alignment(folder: Path) -> Target:
    """The record in the alignment file of a student."""
    file, whole = folder / "record.json", folder / "alignment.safetensors"
    whole.write_bytes(encode_alignments([(SvdPts(), build_alignment(SvdPts(), 8, 4), AlignmentInputs(count=3))]))
    with safe_open(whole, "pt") as opened:
        tensors, content = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()["record"]  # noqa: SIM118

    def read() -> None:
        save_file(tensors, whole, {"record": file.read_text(encoding="utf-8", errors="replace")})
        load_alignments(whole)

    return Target("alignment", file, [content.encode()], read, is_text=True)


def alignment_file(folder: Path) -> Target:
    """The alignment file of a student, as bytes."""
    file = folder / "alignment.safetensors"
    contents = [encode_alignments([(SvdPts(), build_alignment(SvdPts(), 8, 4), AlignmentInputs(count=3))])]
    return Target("alignment_file", file, contents, lambda: load_alignments(file))


def kdep_alignment(folder: Path) -> Target:
    """KDEP's published basis, an .npy."""
    file, mean, out = folder / "v.npy", folder / "mean.npy", folder / "alignment.safetensors"
    np.save(mean, np.zeros(4))
    content = _saved(np.eye(4), lambda array, buffer: np.save(buffer, array))
    read = lambda: import_kdep_alignment(file, mean, out, config=SvdPts(), dim=2)  # noqa: E731
    return Target("kdep_alignment", file, [content], read)


def features(folder: Path) -> Target:
    """SimReg's stored teacher features."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    images, file = read_unlabelled(folder), folder / "features.pth"
    vectors = {path.name: torch.arange(4.0) for path in images.paths}
    contents = [_saved(vectors), _saved(vectors, lambda v, b: torch.save(v, b, _use_new_zipfile_serialization=False))]
    return Target("features", file, contents, lambda: read_feature_file(file, images, 4))


def seg_state(folder: Path) -> Target:
    """A state of MMEngine."""
    hub: dict[str, Any] = {"log_scalars": {}, "runtime_info": {}}
    content = {"meta": {"cfg": "x", "iter": 3}, "state_dict": {"a": torch.ones(3)}, "message_hub": hub, "optimizer": {}}
    file = folder / "iter_3.pth"
    return Target("seg_state", file, [_saved(content)], lambda: load_state(str(file)))


def det_state(folder: Path) -> Target:
    """A state of Detectron2."""
    from stillroom.det_transfer.backends.detectron2.saved import load_state as load  # noqa: PLC0415  # if installed

    file = folder / "model_0000003.pth"
    content = {"model": {"a": torch.ones(3)}, "iteration": 3, "trainer": {"iteration": 2}}
    return Target("det_state", file, [_saved(content)], lambda: load(file))


BUILDERS: tuple[Callable[[Path], Target], ...] = (
    *(inputs, metrics, heads, alignment, alignment_file, kdep_alignment, features, seg_state),
    *((det_state,) if importlib.util.find_spec("detectron2") else ()),
)
