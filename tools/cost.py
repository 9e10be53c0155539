"""The cost of nets on this machine: parameters, and multiply-adds and milliseconds per image.

python tools/cost.py runs/quickstart/teacher runs/quickstart/student/student --size 96 32
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

from stillroom.backbone.atomic import write_file
from stillroom.backbone.checks import at_least
from stillroom.backbone.command import report_errors
from stillroom.backbone.names import refuse_missing_checkpoint
from stillroom.runs import format_table

if TYPE_CHECKING:  # --help and a wrong flag need no torch
    import torch
    from torch import nn

    from stillroom.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Count the parameters and multiply-adds of nets, and time their forward passes one image at a time."""

    nets: Annotated[Positional[tuple[str, ...]], arg(metavar="DIR|NAME [DIR|NAME ...]")]
    """Checkpoint directories, or names as for --checkpoint of the other tools."""
    size: tuple[int, ...] = ()
    """Input side of each net, pixels; without it, or with 0: the size in the checkpoint."""
    threads: int = 1
    """Threads per forward pass."""
    rounds: int = 30
    """Timed passes of each net, interleaved with the other nets'; the median is reported."""
    out: Path | None = None
    """Also write the numbers as JSON to this file."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one image in a net without its classifier.

    Args:
        net: the name or directory that was passed.
        size: side of the image, pixels.
        parameters: number of the net's parameters.
        macs: multiply-adds of its convolutions and matrix products.
        milliseconds: median time of a forward pass of one image in float32.
        threads: number of threads of a forward pass.
    """

    net: str
    size: int
    parameters: int
    macs: int
    milliseconds: float
    threads: int


def check(settings: Settings) -> None:
    """Validate the settings before torch is imported.

    Raises:
        ValueError: numbers out of range, a wrong number of sizes, or the path of a checkpoint that does not exist.
    """
    at_least(settings, 1, "threads", "rounds")
    at_least(settings, 0, "size")
    if settings.size and len(settings.size) != len(settings.nets):
        raise ValueError(
            f"--size has {len(settings.size)} values for {len(settings.nets)} nets: pass one for each, or none"
        )
    for net in settings.nets:
        refuse_missing_checkpoint(net)


def measure(nets: tuple[str, ...], sizes: tuple[int, ...], rounds: int) -> list[Cost]:
    """Measure each net on the CPU; passes are interleaved, so that a busy machine slows all nets alike.

    Args:
        nets: checkpoint directories or names.
        sizes: pixels, one for each net; empty, or 0: the size in the checkpoint.
        rounds: timed passes of each net.

    Raises:
        ValueError: an unknown net, or a size that it does not take.
    """
    import torch  # noqa: PLC0415

    from stillroom.backbone import load_backbone  # noqa: PLC0415
    from stillroom.backbone.initial import refuse_size  # noqa: PLC0415

    backbones = [load_backbone(net).eval() for net in nets]
    requested = sizes or (0,) * len(nets)
    sides = [size or backbone.spec.input.size for size, backbone in zip(requested, backbones, strict=True)]
    for side, backbone in zip(sides, backbones, strict=True):
        refuse_size(backbone, side, side, "pass another --size")
    images = [torch.rand(1, 3, side, side) for side in sides]
    spent: list[list[float]] = [[] for _ in nets]
    for turn in range(rounds + 3):  # the first three are warm-up
        for times, backbone, image in zip(spent, backbones, images, strict=True):
            began = time.perf_counter()
            with torch.no_grad():
                backbone(image)
            if turn >= 3:
                times.append(1000 * (time.perf_counter() - began))
    return [
        Cost(
            net=net,
            size=side,
            parameters=sum(p.numel() for p in backbone.net.parameters()),
            macs=count_macs(backbone, image),
            milliseconds=statistics.median(times),
            threads=torch.get_num_threads(),
        )
        for net, side, backbone, image, times in zip(nets, sides, backbones, images, spent, strict=True)
    ]


def count_macs(backbone: "Backbone | nn.Module", image: "torch.Tensor") -> int:
    """Multiply-adds of one forward pass: half the floating point operations that torch counts."""
    import torch  # noqa: PLC0415
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(image)
    return counter.get_total_flops() // 2


@report_errors
def main() -> None:
    """Measure the nets, print a table, and write the numbers to --out."""
    settings = tyro.cli(Settings, description=__doc__)
    check(settings)
    import torch  # noqa: PLC0415

    torch.set_num_threads(settings.threads)
    costs = measure(settings.nets, settings.size, settings.rounds)
    header = ["net", "input, px", "parameters, million", "GMACs", "ms per image"]
    rows = [
        [c.net, str(c.size), f"{c.parameters / 1e6:.2f}", f"{c.macs / 1e9:.3f}", f"{c.milliseconds:.1f}"] for c in costs
    ]
    if settings.out is not None:
        write_file(settings.out, json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")
    print(format_table(header, rows))


if __name__ == "__main__":
    main()
