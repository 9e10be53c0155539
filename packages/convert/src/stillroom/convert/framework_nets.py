"""MMSegmentation's and Detectron2's own nets with the layers of ours, and the names of our tensors in them."""

from dataclasses import dataclass
from typing import Any

from stillroom.backbone.spec import BackboneSpec, InputSpec
from stillroom.convert.bridge import UNUSED
from stillroom.convert.keys import Rule

DEPTHS = (18, 34, 50, 101, 152)
_MOBILENET_V2_BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # per stage


@dataclass(frozen=True)
class SegmentationNet:
    """A backbone of MMSegmentation: its registered name, its arguments, and the rules from our names to its own."""

    type: str
    arguments: dict[str, Any]
    rules: tuple[Rule, ...]


def pixel_statistics(spec: InputSpec) -> tuple[list[float], list[float]]:
    """Mean and std for pixels from 0 to 255, as both frameworks take them; in the net's channel order."""
    low, high = spec.value_range
    unit = 255 / (high - low)
    return [unit * (value - low) for value in spec.mean], [unit * value for value in spec.std]


def native_depth(spec: BackboneSpec) -> int | None:
    """The depth of the ResNet of both frameworks that has the same layers, or None."""
    library, _, short = spec.name.partition("/")
    plain = library in ("torchvision", "timm") and not spec.arguments
    return next((depth for depth in DEPTHS if plain and short.split(".")[0] == f"resnet{depth}"), None)


def detectron2_rules(body: str = "", head: str | None = None, frozen: bool = False) -> tuple[Rule, ...]:
    """Key rules from torchvision's ResNet to Detectron2's.

    Args:
        body: prefix of the net in the model, with a dot.
        head: prefix of its last stage, with a dot; None: it is in the body.
        frozen: whether the norms are frozen; then they have no batch counters, which are put aside.
    """
    rules = [Rule(r"(.*\.num_batches_tracked)", rf"{UNUSED}\1")] if frozen else []
    rules += [Rule(r"conv1\.weight", f"{body}stem.conv1.weight"), Rule(r"bn1\.(.*)", rf"{body}stem.conv1.norm.\1")]
    for stage in range(1, 5):
        prefix = head if stage == 4 and head is not None else f"{body}res{stage + 1}."
        rules += [
            Rule(rf"layer{stage}\.(\d+)\.conv(\d)\.weight", rf"{prefix}\1.conv\2.weight"),
            Rule(rf"layer{stage}\.(\d+)\.bn(\d)\.(.*)", rf"{prefix}\1.conv\2.norm.\3"),
            Rule(rf"layer{stage}\.(\d+)\.downsample\.0\.weight", rf"{prefix}\1.shortcut.weight"),
            Rule(rf"layer{stage}\.(\d+)\.downsample\.1\.(.*)", rf"{prefix}\1.shortcut.norm.\2"),
        ]
    return tuple(rules)


def segmentation_net(spec: BackboneSpec) -> SegmentationNet | None:
    """MMSegmentation's own net with the same layers, or None; it has no last 1x1 convolution of MobileNet-V2."""
    same = Rule(r"((?:conv1|bn1|layer[1-4])\..*)", r"\1")
    if (depth := native_depth(spec)) is not None:
        return SegmentationNet("ResNet", {"depth": depth}, (same,))
    name = spec.name.split(".")[0]
    if name == "timm/resnet50c" and not spec.arguments:
        stem = (Rule(r"conv1\.(\d)\.(.*)", r"stem.\1.\2"), Rule(r"bn1\.(.*)", r"stem.7.\1"))
        return SegmentationNet("ResNetV1c", {"depth": 50}, (*stem, same))
    mobilenets = {"torchvision/mobilenet_v2": _torchvision_mobilenet_v2, "timm/mobilenetv2_100": _timm_mobilenet_v2}
    if name in mobilenets and not spec.arguments:
        return SegmentationNet("MobileNetV2", {"out_indices": (1, 2, 4, 6)}, mobilenets[name]())
    return None


def _torchvision_mobilenet_v2() -> tuple[Rule, ...]:
    """Map `features.N.conv.K` to `layerS.B.conv.K.conv|bn`; features.18, the last 1x1 convolution, is kept aside."""
    rules = [Rule(r"features\.0\.0\.(.*)", r"conv1.conv.\1"), Rule(r"features\.0\.1\.(.*)", r"conv1.bn.\1")]
    number = 1
    for stage, blocks in enumerate(_MOBILENET_V2_BLOCKS, start=1):
        for block in range(blocks):
            theirs, ours = f"layer{stage}.{block}.conv", rf"features\.{number}\.conv"
            last = 1 if number == 1 else 2  # the first block does not expand
            rules += [
                Rule(rf"{ours}\.(\d)\.0\.(.*)", rf"{theirs}.\1.conv.\2"),
                Rule(rf"{ours}\.(\d)\.1\.(.*)", rf"{theirs}.\1.bn.\2"),
                Rule(rf"{ours}\.{last}\.(.*)", rf"{theirs}.{last}.conv.\1"),
                Rule(rf"{ours}\.{last + 1}\.(.*)", rf"{theirs}.{last}.bn.\1"),
            ]
            number += 1
    return (*rules, Rule(rf"(features\.{number}\..*)", rf"{UNUSED}\1"))


def _timm_mobilenet_v2() -> tuple[Rule, ...]:
    """Map `blocks.S.B.conv_pw`, `conv_dw`, `conv_pwl` to `layerS.B.conv.K.conv|bn`; conv_head, its norm stay aside."""
    rules = [Rule(r"conv_stem\.(.*)", r"conv1.conv.\1"), Rule(r"bn1\.(.*)", r"conv1.bn.\1")]
    for stage in range(len(_MOBILENET_V2_BLOCKS)):
        layers = ("conv_dw", "conv_pw") if stage == 0 else ("conv_pw", "conv_dw", "conv_pwl")
        for k, layer in enumerate(layers):
            theirs = rf"layer{stage + 1}.\1.conv.{k}"
            rules.append(Rule(rf"blocks\.{stage}\.(\d)\.{layer}\.(.*)", rf"{theirs}.conv.\2"))
            rules.append(Rule(rf"blocks\.{stage}\.(\d)\.bn{k + 1}\.(.*)", rf"{theirs}.bn.\2"))
    return (*rules, Rule(r"((?:conv_head|bn2)\..*)", rf"{UNUSED}\1"))
