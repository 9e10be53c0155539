"""Formats for elsewhere: timm's layout on the Hugging Face hub, and ONNX."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from stillroom.backbone import families
from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.backbone.features import Backbone, PooledOnly
from stillroom.backbone.manifest import CheckpointError
from stillroom.backbone.spec import BackboneSpec

ONNX_TOLERANCE = 1e-4
"""Of the largest value: how far onnxruntime may be from torch."""


def write_hub_directory(
    out: Path, name: str, spec: BackboneSpec, tensors: Mapping[str, Tensor], num_classes: int
) -> None:
    """A folder that `timm.create_model("local-dir:OUT")` loads and that can be pushed to the Hugging Face hub as it is.

    Args:
        out: folder to make.
        name: timm's name of the net, `timm/` in front.
        spec: for constructor arguments, input and licence.
        tensors: under timm's names.
        num_classes: of the classifier among them; 0: none.

    Raises:
        CheckpointError: an input that timm's configuration cannot say.
    """
    given = spec.input
    if given.channel_order != "rgb" or given.value_range != (0.0, 1.0):
        raise CheckpointError(f"{name} takes {given.channel_order} in {given.value_range}: timm's layout cannot say so")
    timms = families.timm.configuration(name.removeprefix("timm/"))
    config = {
        "architecture": name.removeprefix("timm/").split(".")[0],
        "num_classes": num_classes,
        "num_features": spec.dim,
        "model_args": spec.arguments,
        "pretrained_cfg": {
            "input_size": [3, given.size, given.size],
            "mean": given.mean,
            "std": given.std,
            "interpolation": given.interpolation,
            "crop_pct": given.crop_fraction,
            "crop_mode": "squash" if given.resize == "squash" else "center",
            "num_classes": num_classes,
            "first_conv": timms.first_conv,
            "classifier": timms.classifier,
            "license": spec.licence.spdx.lower(),
            "custom_load": False,
        },
    }
    card = [
        "---",
        "library_name: timm",
        f"license: {spec.licence.spdx.lower() if spec.licence.permissive else 'other'}",
        "---",
        f"{name.removeprefix('timm/')}, written by stillroom. Load it with `timm.create_model`.",
        *(f"- {phrase}" for phrase in spec.licence.restrictions),
    ]
    with replace_directory(out) as aside:
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (aside / "model.safetensors").write_bytes(save(dict(tensors), {"format": "pt"}))
        (aside / "README.md").write_text("\n".join(card) + "\n", encoding="utf-8")


def write_onnx(out: Path, backbone: Backbone) -> None:
    """An ONNX file: `images` (batch, 3, size, size), normalised float32 -> `pooled` (batch, d), any batch.

    onnxruntime must give the same features as torch to 1e-4 of the largest, at two batch sizes, or nothing is written.

    Raises:
        CheckpointError: the `onnx` extra is not installed, the net cannot be exported, or its features differ.
    """
    try:
        import onnxruntime  # noqa: PLC0415  # an extra, and slow to import
        import onnxscript  # noqa: F401, PLC0415  # torch.onnx needs it
    except ImportError as error:
        raise CheckpointError("ONNX needs more packages: pip install 'stillroom-backbone[onnx]'") from error
    side = backbone.spec.input.size
    generator = torch.Generator().manual_seed(0)
    net, images = PooledOnly(backbone), torch.randn(3, 3, side, side, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(
                net,
                (images[:2],),
                file,
                input_names=["images"],
                output_names=["pooled"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # torch.onnx has an error class per stage, and none in common
            raise CheckpointError(f"{backbone.spec.name} cannot be exported to ONNX: {error}") from error
        session: Any = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for batch in (images[:1], images):
            with torch.no_grad():
                expected = net(batch)
            ours = torch.from_numpy(session.run(["pooled"], {"images": batch.numpy()})[0])
            apart = float((ours - expected).abs().max() / expected.abs().max())
            if not apart <= ONNX_TOLERANCE:
                raise CheckpointError(f"{backbone.spec.name} in ONNX differs from torch by {apart:.1e}: not written")
        write_file(out, file.read_bytes())
