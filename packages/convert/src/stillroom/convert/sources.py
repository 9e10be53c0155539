"""The facts of each project whose files are imported: its nets, its key names, the input it publishes."""

from dataclasses import dataclass

from stillroom.backbone.manifest import CheckpointError
from stillroom.backbone.spec import InputSpec
from stillroom.convert import key_rules
from stillroom.convert.flags import Source
from stillroom.convert.keys import Rule


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What is known of a project's files.

    Args:
        rules: of its key names.
        input: the preprocessing of its own evaluation; None for libraries, whose files hold any training's weights.
        nets: what the names of its nets begin with; empty for any.
        holds: its nets in words, for the error about another.
        only_net: its net, if it has one.
    """

    rules: tuple[Rule, ...]
    input: InputSpec | None
    nets: tuple[str, ...] = ()
    holds: str = ""
    only_net: str | None = None


_TORCHVISION_CLASSIC = InputSpec()  # 224 of 256 px, bilinear through Pillow, ImageNet's mean and std
_HALF = (0.5, 0.5, 0.5)
_LITE0 = "timm/tf_efficientnet_lite0"

SOURCES: dict[Source, SourceFacts] = {
    "torchvision": SourceFacts(
        rules=key_rules.PLAIN, input=None, nets=("torchvision/", "simclr/"), holds="nets of torchvision/"
    ),
    "timm": SourceFacts(rules=key_rules.PLAIN, input=None, nets=("timm/",), holds="nets of timm/"),
    # src/utils/constants.py; the mean and std in a file replace these
    "kdep": SourceFacts(
        rules=key_rules.ROBUSTNESS,
        input=_TORCHVISION_CLASSIC,
        nets=("torchvision/",),
        holds="torchvision's ResNets and MobileNet-V2",
    ),
    "simreg": SourceFacts(rules=key_rules.SIMREG, input=_TORCHVISION_CLASSIC),  # eval_knn.py
    "moco": SourceFacts(rules=key_rules.MOCO, input=_TORCHVISION_CLASSIC),  # main_lincls.py
    "swav": SourceFacts(rules=key_rules.SWAV, input=InputSpec(std=(0.228, 0.224, 0.225))),  # eval_linear.py, training
    "dino": SourceFacts(rules=key_rules.DINO, input=InputSpec(interpolation="bicubic")),  # eval_knn.py
    "byol": SourceFacts(  # SimReg's eval_knn.py, and validate.py of the converter
        rules=key_rules.BYOL,
        input=_TORCHVISION_CLASSIC,
        nets=("byol/resnet50",),
        holds="byol/resnet50 (a ResNet-50 that pads as TensorFlow's SAME)",
        only_net="byol/resnet50",
    ),
    "simclr": SourceFacts(  # SimReg's eval_knn.py
        rules=key_rules.SIMCLR,
        input=_TORCHVISION_CLASSIC,
        nets=("simclr/resnet50x4",),
        holds="simclr/resnet50x4",
        only_net="simclr/resnet50x4",
    ),
    "efficientnet-lite": SourceFacts(  # its order of tensors replaces rules
        rules=key_rules.PLAIN,
        input=InputSpec(interpolation="bicubic", mean=_HALF, std=_HALF),
        nets=(_LITE0,),
        holds=_LITE0,
        only_net=_LITE0,
    ),
}


def choose_net(source: Source, backbone: str | None) -> str:
    """The net of a file; CheckpointError if the source does not hold `backbone`, or None where it holds several."""
    facts = SOURCES[source]
    name = backbone or facts.only_net
    if name is None:
        raise CheckpointError(f"source {source} holds several nets: pass --backbone, for instance torchvision/resnet50")
    if facts.nets and not name.startswith(facts.nets):
        raise CheckpointError(f"source {source} holds {facts.holds}, not {name}")
    return name
