"""The nets of a run and what they are fed. The docstring under each field is its `--help`."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from tyro.conf import arg  # names flags: `--teacher`, not `--teacher.name`; nothing else of tyro is imported here

from stillroom.backbone.checks import at_least, within
from stillroom.backbone.spec import FeaturePoint

T = TypeVar("T")

ChannelOrder = Literal["own", "rgb", "bgr"]
Output = Literal["feature", "class", "patches", "class+patches", "projection", "logits"]
"""Which output of a teacher the student regresses: the pooled feature; a ViT's class token, its mean patch token, or
both concatenated; the output of the projection head or of the classifier in its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Net:
    """One net, which feature is read from it, and its input."""

    name: Annotated[str, arg(name="", metavar="NAME|DIR")]
    """Backbone name or checkpoint directory. A teacher's name means its pretrained weights, a student's name random
    weights; random:NAME always means random weights."""
    feature: FeaturePoint = "before"
    """Read the pooled feature before or after the last activation."""
    output: Output = "feature"
    """Which output of a teacher the student regresses."""
    size: int | None = None
    """Input side in pixels; None: that of the net's specification."""
    crop_fraction: float | None = None
    """Evaluation crop over resized side, in (0, 1]; None: that of the net's specification."""
    channel_order: ChannelOrder = "own"
    """Order of the colour channels; own: that of the net's specification."""
    weight: float = 1.0
    """Weight of this teacher's loss."""

    def __post_init__(self) -> None:
        if self.size is not None:
            at_least(self, 1, "size", prefix="teacher.")
        if self.crop_fraction is not None:
            within(self, 0, 1, "crop_fraction", ends="(]", prefix="teacher.")


@dataclass(frozen=True, kw_only=True)
class Students:
    """The nets to train; several share each forward pass of the teachers. Flags take one value for all, or one each."""

    name: Annotated[tuple[str, ...], arg(name="", metavar="NAME|DIR")]
    """Backbone names (random initial weights) or checkpoint directories (their weights)."""
    feature: tuple[FeaturePoint, ...] = ("before",)
    """Read the pooled feature before or after the last activation."""
    size: tuple[int, ...] = ()
    """Input side in pixels; empty: that of each net's specification."""
    crop_fraction: tuple[float, ...] = ()
    """Evaluation crop over resized side, in (0, 1]; empty: that of each net's specification."""

    def __post_init__(self) -> None:
        check_inputs(self, "student.")

    def nets(self) -> list[Net]:
        """Each net with its settings.

        Raises:
            ValueError: a flag with neither one value nor one per net.
        """
        num_nets = len(self.name)
        feature = one_per_net(self.feature, num_nets, "--student.feature")
        size = one_per_net(self.size or (None,), num_nets, "--student.size")
        crop = one_per_net(self.crop_fraction or (None,), num_nets, "--student.crop-fraction")
        return [
            Net(name=n, feature=f, size=s, crop_fraction=c)
            for n, f, s, c in zip(self.name, feature, size, crop, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """The frozen nets. Flags take one value for all of them, or one each."""

    name: Annotated[tuple[str, ...], arg(name="", metavar="NAME|DIR")]
    """Checkpoint directories, or backbone names (pretrained weights); random:NAME has random weights."""
    feature: tuple[FeaturePoint, ...] = ("before",)
    """Read the pooled feature before or after the last activation."""
    output: tuple[Output, ...] = ("feature",)
    """What the student regresses: the pooled feature; a ViT's class token, its mean patch token, or both concatenated;
    the output of the projection head or of the classifier in the checkpoint."""
    size: tuple[int, ...] = ()
    """Input side in pixels; empty: that of each net's specification."""
    crop_fraction: tuple[float, ...] = ()
    """Evaluation crop over resized side, in (0, 1]; empty: that of each net's specification."""
    channel_order: tuple[ChannelOrder, ...] = ("own",)
    """Order of the colour channels; own: that of the net's specification. KDEP's code feeds rgb to every net."""
    weight: tuple[float, ...] = (1.0,)
    """Weight of each teacher's loss; only their ratios matter."""

    def __post_init__(self) -> None:
        check_inputs(self, "teacher.")
        if self.weight and not (min(self.weight) >= 0 and 0 < sum(self.weight) < math.inf):
            raise ValueError(f"--teacher.weight is {self.weight}: weights must not be negative, infinite, nor all zero")

    def nets(self) -> list[Net]:
        """Each net with its settings.

        Raises:
            ValueError: a flag with neither one value nor one per net.
        """
        num_nets = len(self.name)
        feature = one_per_net(self.feature, num_nets, "--teacher.feature")
        output = one_per_net(self.output, num_nets, "--teacher.output")
        size = one_per_net(self.size or (None,), num_nets, "--teacher.size")
        crop = one_per_net(self.crop_fraction or (None,), num_nets, "--teacher.crop-fraction")
        order = one_per_net(self.channel_order, num_nets, "--teacher.channel-order")
        weight = one_per_net(self.weight, num_nets, "--teacher.weight")
        return [
            Net(name=n, feature=f, output=o, size=s, crop_fraction=c, channel_order=r, weight=w)
            for n, f, o, s, c, r, w in zip(self.name, feature, output, size, crop, order, weight, strict=True)
        ]

    def normalised_weights(self) -> list[float]:
        """The weight of each teacher's loss, scaled so that they sum to 1."""
        weights = [net.weight for net in self.nets()]
        return [weight / sum(weights) for weight in weights]


def check_inputs(nets: "Students | Teachers", prefix: str) -> None:
    """Refuse no net at all, input sizes below 1 pixel and crops outside (0, 1], by a ValueError."""
    if not nets.name:
        raise ValueError(f"--{prefix.rstrip('.')} is empty: pass at least one")
    at_least(nets, 1, "size", prefix=prefix)
    within(nets, 0, 1, "crop_fraction", ends="(]", prefix=prefix)


def one_per_net(values: tuple[T, ...], num_nets: int, flag: str) -> tuple[T, ...]:
    """Repeat a single value for every net; as many values as nets are returned unchanged.

    Raises:
        ValueError: any other number of values.
    """
    if len(values) not in (1, num_nets):
        raise ValueError(f"{flag} has {len(values)} values for {num_nets} nets: pass one for all of them, or one each")
    return values * num_nets if len(values) == 1 else values
