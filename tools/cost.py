"""What nets cost on this machine: weights, multiply-adds and milliseconds for each image.

python tools/cost.py runs/quickstart/teacher runs/quickstart/student/student --size 96 32
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tyro.conf import Positional, arg

from stillroom.backbone import Backbone, format_table, load_backbone
from stillroom.backbone.atomic import write_file
from stillroom.backbone.command import report_errors


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Count the weights and the multiply-adds of nets, and time their forward passes one image at a time."""

    nets: Annotated[Positional[tuple[str, ...]], arg(metavar="DIR|NAME [DIR|NAME ...]")]
    """Checkpoint directories, or names as in --checkpoint of the other tools."""
    size: tuple[int, ...] = ()
    """Input side of each net, pixels; none, or 0: as its checkpoint says."""
    threads: int = 1
    """Threads of a forward pass."""
    rounds: int = 30
    """Passes of each net, which take turns; the median counts."""
    out: Path | None = None
    """Also write the numbers as JSON to this file."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one image through a net, without its classifier.

    Args:
        net: as it was named.
        size: side of the image, pixels.
        parameters: of the net.
        macs: multiply-adds of its convolutions and matrix products.
        milliseconds: median time of a forward pass of one image in float32.
        threads: that it ran on.
    """

    net: str
    size: int
    parameters: int
    macs: int
    milliseconds: float
    threads: int


@torch.no_grad()
def measure(nets: tuple[str, ...], sizes: tuple[int, ...], rounds: int) -> list[Cost]:
    """The cost of each net on the CPU; their passes take turns, so that a busy machine slows all of them alike.

    Args:
        nets: checkpoint directories or names.
        sizes: pixels, one for each net; none, or 0, as their checkpoints say.
        rounds: timed passes of each.

    Raises:
        ValueError: a number of sizes that does not fit, a size below 0, no rounds, or a net that is not known.
    """
    if sizes and len(sizes) != len(nets):
        raise ValueError(f"--size has {len(sizes)} values for {len(nets)} nets: give one each, or none")
    for flag, value, least in (("size", min(sizes, default=0), 0), ("rounds", rounds, 1)):
        if value < least:
            raise ValueError(f"--{flag} is {value}: it must be at least {least}")
    backbones = [load_backbone(net).eval() for net in nets]
    given = sizes or (0,) * len(nets)
    sides = [size or backbone.spec.input.size for size, backbone in zip(given, backbones, strict=True)]
    images = [torch.rand(1, 3, side, side) for side in sides]
    spent: list[list[float]] = [[] for _ in nets]
    for turn in range(rounds + 3):  # the first three warm up
        for times, backbone, image in zip(spent, backbones, images, strict=True):
            began = time.perf_counter()
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


def count_macs(backbone: Backbone | nn.Module, image: torch.Tensor) -> int:
    """Multiply-adds of one forward pass: half the floating point operations that torch counts."""
    with FlopCounterMode(display=False) as counter:
        backbone(image)
    return counter.get_total_flops() // 2


@report_errors
def main() -> None:
    """Measure, print, and write if asked to."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.threads < 1:
        raise ValueError(f"--threads is {settings.threads}: it must be at least 1")
    torch.set_num_threads(settings.threads)
    costs = measure(settings.nets, settings.size, settings.rounds)
    header = ["net", "input, px", "weights, million", "GMACs", "ms per image"]
    rows = [
        [c.net, str(c.size), f"{c.parameters / 1e6:.2f}", f"{c.macs / 1e9:.3f}", f"{c.milliseconds:.1f}"] for c in costs
    ]
    if settings.out is not None:
        write_file(settings.out, json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")
    print(format_table(header, rows))


if __name__ == "__main__":
    main()
