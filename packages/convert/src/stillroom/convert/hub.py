"""A backbone in timm's layout of the Hugging Face hub, a folder, which timm must load with the same features."""

import json
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from stillroom.backbone.atomic import replace_directory
from stillroom.backbone.errors import keeps_traceback
from stillroom.backbone.families.timm import constructor_arguments
from stillroom.backbone.features import Backbone
from stillroom.backbone.manifest import CheckpointError

HUB_TOLERANCE = 1e-5
"""Largest difference between timm's features and the backbone's, relative to the largest value."""


def write_hub_directory(
    out: Path, name: str, backbone: Backbone, tensors: Mapping[str, Tensor], num_classes: int
) -> None:
    """Write a folder that `timm.create_model("local-dir:OUT")` loads and that can be pushed to the Hugging Face hub.

    timm must load it and give the backbone's features at the size that it states, or nothing is written.

    Args:
        out: the folder.
        name: of the net in timm, `timm/...`.
        backbone: the checkpoint's.
        tensors: under timm's names, with the classifier's.
        num_classes: of the classifier; 0: there is none.

    Raises:
        CheckpointError: an input that timm's configuration cannot express, a folder that timm does not load, or other
            features.
    """
    spec = backbone.spec
    image, architecture = spec.input, name.removeprefix("timm/")
    if image.channel_order != "rgb" or image.value_range != (0.0, 1.0):
        raise CheckpointError(
            f"{name} takes {image.channel_order} in {image.value_range}: timm's layout cannot express that"
        )
    published = timm.get_pretrained_cfg(architecture)
    config = {
        "architecture": architecture.split(".")[0],
        "num_classes": num_classes,
        "num_features": spec.dim,
        "model_args": constructor_arguments(architecture, spec.arguments),
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
        _refuse_different(partial, backbone)


def _refuse_different(folder: Path, backbone: Backbone) -> None:
    """Load the folder in timm, feed it at the stated size, and compare the pooled feature with the backbone's."""
    side = backbone.spec.input.size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = backbone.at("after").eval()(images).pooled  # timm's nets have their last activation
        try:
            net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            found = net.forward_head(net.forward_features(images), pre_logits=True)
        except Exception as error:  # timm's nets have no error class in common
            if keeps_traceback(error):
                raise
            raise CheckpointError(f"timm cannot load and feed {backbone.spec.name} at {side} px: {error}") from error
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= HUB_TOLERANCE:
        raise CheckpointError(f"{backbone.spec.name} loaded by timm differs by {difference:.1e}: not written")
