"""A checkpoint into the formats of other projects. A new format is a new member of `flags.Target`."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import cattrs
import torch
from safetensors.torch import save
from torch import Tensor

from stillroom.backbone.atomic import write_file
from stillroom.backbone.checkpoint import load_checkpoint, load_heads
from stillroom.backbone.heads import CLASSIFIER
from stillroom.backbone.initial import refuse_size
from stillroom.backbone.manifest import CheckpointError, Manifest
from stillroom.backbone.registry import classifier_prefix
from stillroom.backbone.spec import BackboneSpec
from stillroom.convert.flags import Target
from stillroom.convert.frameworks import write_framework_file
from stillroom.convert.onnx import write_onnx


def export_file(checkpoint: Path, out: Path, *, target: Target, require_permissive: bool = False) -> tuple[str, ...]:
    """Write the backbone, and where the target takes one its kept classifier, in another project's format.

    Args:
        checkpoint: directory to read.
        out: .safetensors, or .pth for a pickled state dict; a new folder for `huggingface`; .onnx for `onnx`; .pth for
            `mmsegmentation` and `detectron2`, with their config beside it. `<out>.json` beside it holds input,
            licence, provenance and what is left out.
        target: the project whose key names are written, or the format.
        require_permissive: refuse weights whose licence, or an inherited restriction, is not a permissive one.

    Returns:
        What of the checkpoint is left out, one sentence each.

    Raises:
        CheckpointError: unsupported pair of net and target, refused licence, existing file, unknown suffix.
        ValueError: for `huggingface` and `onnx`, a net that does not take images of the size that it states.
    """
    backbone, manifest = load_checkpoint(checkpoint)
    spec = manifest.backbone
    if out.exists():
        raise CheckpointError(f"{out} exists: choose another --out")
    if require_permissive and not spec.licence.permissive:
        why = "; ".join(spec.licence.restrictions) or f"licence {spec.licence.spdx}"
        raise CheckpointError(f"checkpoint {checkpoint} is not under a permissive licence ({why}): not exported")
    if target in ("onnx", "huggingface"):  # both are fed before they count as written
        size = spec.input.size
        refuse_size(backbone, size, size, "the checkpoint states a size that its net does not take, so import it anew")
    heads, name = set(manifest.heads), spec.name
    left_out: tuple[str, ...] = ()
    match target:
        case "onnx":
            write_onnx(out, backbone)
        case "mmsegmentation" | "detectron2":
            if unused := write_framework_file(out, backbone, target):
                listed = ", ".join(unused[:6]) + (", ..." if len(unused) > 6 else "")
                left_out = (f"{target}'s net has no place for {len(unused)} tensors: {listed}",)
        case "torchvision" | "timm" | "huggingface":
            name = _target_name(spec, "timm" if target == "huggingface" else target)
            tensors = backbone.net.state_dict()
            if CLASSIFIER in heads:
                prefix = classifier_prefix(name)
                tensors |= {f"{prefix}{key}": tensor for key, tensor in load_heads(checkpoint, CLASSIFIER).items()}
                heads.remove(CLASSIFIER)
            if target == "huggingface":
                from stillroom.convert.hub import write_hub_directory  # noqa: PLC0415  # timm takes seconds

                num_classes = manifest.heads[CLASSIFIER].out_dim if CLASSIFIER in manifest.heads else 0
                write_hub_directory(out, name, backbone, tensors, num_classes)
            else:
                write_file(out, _encode(tensors, out))
    left_out += tuple(f"{target} files hold no {head}: it stays in the checkpoint" for head in sorted(heads))
    _write_record(out, name, manifest, left_out)
    return left_out


def _write_record(out: Path, name: str, manifest: Manifest, left_out: tuple[str, ...]) -> None:
    """Write `<out>.json`: input, licence, provenance, and what is left out."""
    spec, arguments = manifest.backbone, manifest.backbone.arguments
    if name.startswith("timm/"):
        from stillroom.backbone.families.timm import constructor_arguments  # noqa: PLC0415  # timm takes seconds

        arguments = constructor_arguments(name.removeprefix("timm/"), arguments)
    record = {
        "net": name,
        "arguments": arguments,
        "input": cattrs.unstructure(spec.input),
        "licence": cattrs.unstructure(spec.licence),
        "made_by": cattrs.unstructure(manifest.made_by),
        "weights_sha256": manifest.weights.sha256,
        "left_out": left_out,
    }
    write_file(out.with_name(out.name + ".json"), json.dumps(record, indent=2) + "\n")


def _target_name(spec: BackboneSpec, target: Literal["torchvision", "timm"]) -> str:
    """The name of the same net in the target's library.

    torchvision and timm give their plain ResNets, ResNeXts and Wide ResNets the same layers and the same key names;
    constructor arguments mean different things in the two.
    """
    library, _, short = spec.name.partition("/")
    if library == target:
        return spec.name
    architecture = short.split(".")[0]
    shared = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2")
    if library in ("torchvision", "timm") and architecture in shared and not spec.arguments:
        return f"{target}/{architecture}"
    net = f"{spec.name} {spec.arguments or ''}".strip()
    raise CheckpointError(f"{net} has no counterpart with the same layers in {target}: it is not exported there")


def _encode(tensors: Mapping[str, Tensor], out: Path) -> bytes:
    if out.suffix == ".safetensors":
        return save(dict(tensors), {"format": "pt"})
    if out.suffix in (".pth", ".pt"):
        buffer = io.BytesIO()
        torch.save(dict(tensors), buffer)
        return buffer.getvalue()
    raise CheckpointError(f"{out.name}: pass a name that ends in .safetensors or .pth")
