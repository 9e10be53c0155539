"""A checkpoint into the formats of other projects. A new format is a new member of `flags.Target`."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import cattrs
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.backbone.checkpoint import load_checkpoint, load_heads
from stillroom.backbone.features import Backbone
from stillroom.backbone.heads import CLASSIFIER
from stillroom.backbone.manifest import CheckpointError, Manifest
from stillroom.backbone.registry import classifier_prefix
from stillroom.backbone.spec import BackboneSpec
from stillroom.convert.flags import Target

ONNX_TOLERANCE = 1e-4
"""Largest difference between onnxruntime and torch, relative to the largest value."""


def export_file(checkpoint: Path, out: Path, *, target: Target, require_permissive: bool = False) -> None:
    """Write the backbone (and its kept classifier) in another project's format.

    Args:
        checkpoint: directory to read.
        out: .safetensors, or .pth for a pickled state dict; a new folder for `huggingface`; .onnx for `onnx`.
            `<out>.json` beside it holds input, licence, provenance.
        target: the project whose key names are written, or the format.
        require_permissive: refuse weights whose licence, or an inherited restriction, is not a permissive one.

    Raises:
        CheckpointError: unsupported pair of net and target, refused licence, existing file, unknown suffix.
    """
    backbone, manifest = load_checkpoint(checkpoint)
    spec = manifest.backbone
    if out.exists():
        raise CheckpointError(f"{out} exists: choose another --out")
    if require_permissive and not spec.licence.permissive:
        why = "; ".join(spec.licence.restrictions) or f"licence {spec.licence.spdx}"
        raise CheckpointError(f"checkpoint {checkpoint} is not under a permissive licence ({why}): not exported")
    if target == "onnx":
        write_onnx(out, backbone)
        _write_record(out, spec.name, manifest)
        return
    name = _target_name(spec, "timm" if target == "huggingface" else target)
    tensors = backbone.net.state_dict()
    if CLASSIFIER in manifest.heads:
        prefix = classifier_prefix(name)
        tensors |= {f"{prefix}{key}": tensor for key, tensor in load_heads(checkpoint, CLASSIFIER).items()}
    if target == "huggingface":
        num_classes = manifest.heads[CLASSIFIER].out_dim if CLASSIFIER in manifest.heads else 0
        _write_hub_directory(out, name, spec, tensors, num_classes)
    else:
        write_file(out, _encode(tensors, out))
    _write_record(out, name, manifest)


def _write_hub_directory(
    out: Path, name: str, spec: BackboneSpec, tensors: Mapping[str, Tensor], num_classes: int
) -> None:
    """Write a folder that `timm.create_model("local-dir:OUT")` loads and that can be pushed to the Hugging Face hub.

    `name` and the names of `tensors` are timm's; `num_classes` is 0 without a classifier. CheckpointError for an input
    that timm's configuration cannot express.
    """
    image, architecture = spec.input, name.removeprefix("timm/")
    if image.channel_order != "rgb" or image.value_range != (0.0, 1.0):
        raise CheckpointError(
            f"{name} takes {image.channel_order} in {image.value_range}: timm's layout cannot express that"
        )
    import timm  # noqa: PLC0415  # takes seconds, and only this format needs it

    published = timm.get_pretrained_cfg(architecture)
    config = {
        "architecture": architecture.split(".")[0],
        "num_classes": num_classes,
        "num_features": spec.dim,
        "model_args": spec.arguments,
        "pretrained_cfg": {
            "input_size": [3, image.size, image.size],
            "mean": image.mean,
            "std": image.std,
            "interpolation": image.interpolation,
            "crop_pct": image.crop_fraction,
            "crop_mode": "squash" if image.resize == "squash" else "center",
            "num_classes": num_classes,
            "first_conv": published.first_conv,
            "classifier": published.classifier,
            "license": spec.licence.spdx.lower(),
            "custom_load": False,
        },
    }
    card = [
        "---",
        "library_name: timm",
        f"license: {spec.licence.spdx.lower() if spec.licence.permissive else 'other'}",
        "---",
        f"{architecture}, written by stillroom. Load it with `timm.create_model`.",
        *(f"- {phrase}" for phrase in spec.licence.restrictions),
    ]
    with replace_directory(out) as partial:
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (partial / "model.safetensors").write_bytes(save(dict(tensors), {"format": "pt"}))
        (partial / "README.md").write_text("\n".join(card) + "\n", encoding="utf-8")


class PooledOnly(nn.Module):
    """A backbone as a net of one output, in eval mode: normalised images (b, 3, h, w) -> pooled feature (b, d)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.eval()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return self.backbone(images).pooled


def write_onnx(out: Path, backbone: Backbone) -> None:
    """Write an ONNX file: `images` (batch, 3, size, size), normalised float32 -> `pooled` (batch, d), any batch size.

    onnxruntime must give the same features as torch to 1e-4 of the largest, at two batch sizes, or nothing is written.

    Raises:
        CheckpointError: the `onnx` extra is not installed, the net cannot be exported, or its features differ.
    """
    try:
        import onnxruntime  # noqa: PLC0415  # an extra, and slow to import
        import onnxscript  # noqa: F401, PLC0415  # torch.onnx needs it
    except ImportError as error:
        raise CheckpointError("ONNX needs more packages: pip install 'stillroom-convert[onnx]'") from error
    side = backbone.spec.input.size
    generator = torch.Generator().manual_seed(0)
    net, images = PooledOnly(backbone), torch.randn(3, 3, side, side, generator=generator)
    batches = (images[:1], images)
    with torch.no_grad():  # before the export, so that an error of the net itself is not taken for one of the export
        expected = [net(batch) for batch in batches]
    try:
        program: Any = torch.onnx.export(
            net,
            (images[:2],),
            input_names=["images"],
            output_names=["pooled"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # torch.onnx has an error class per stage, and none in common
        raise CheckpointError(f"{backbone.spec.name} cannot be exported to ONNX: {error}") from error
    content = program.model_proto.SerializeToString()
    session: Any = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch, features in zip(batches, expected, strict=True):
        exported = torch.from_numpy(session.run(["pooled"], {"images": batch.numpy()})[0])
        difference = float((exported - features).abs().max() / features.abs().max())
        if not difference <= ONNX_TOLERANCE:
            raise CheckpointError(f"{backbone.spec.name} in ONNX differs from torch by {difference:.1e}: not written")
    write_file(out, content)


def _write_record(out: Path, name: str, manifest: Manifest) -> None:
    """Write `<out>.json`: input, licence, provenance."""
    spec = manifest.backbone
    record = {
        "net": name,
        "arguments": spec.arguments,
        "input": cattrs.unstructure(spec.input),
        "licence": cattrs.unstructure(spec.licence),
        "made_by": cattrs.unstructure(manifest.made_by),
        "weights_sha256": manifest.weights.sha256,
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
