"""A backbone as an ONNX file, which onnxruntime must run with the same features."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.backbone.atomic import write_file
from stillroom.backbone.features import Backbone
from stillroom.backbone.manifest import CheckpointError

ONNX_TOLERANCE = 1e-4
"""Largest difference between onnxruntime and torch, relative to the largest value."""


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
