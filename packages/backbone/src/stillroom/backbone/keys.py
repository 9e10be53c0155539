"""Key rules: the names of other projects' tensors here. Every key matches a rule, or is named in an error."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stillroom.backbone.manifest import CheckpointError


@dataclass(frozen=True)
class Rule:
    """Keys that match `pattern` in full become `name` (with its groups), or are left out if it is None."""

    pattern: str
    name: str | None


@dataclass
class Renamed:
    """The result of a set of rules: tensors under their new names, and the old keys that a rule left out."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def rename(state: Mapping[str, Tensor], rules: Sequence[Rule], source: str) -> Renamed:
    """Apply the first matching rule to each key; CheckpointError names keys without a rule, or two that become one."""
    renamed = Renamed()
    foreign = []
    for key, tensor in state.items():
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, key)), None)
        if rule is None:
            foreign.append(key)
        elif rule.name is None:
            renamed.left_out.append(key)
        else:
            name = re.sub(f"^(?:{rule.pattern})$", rule.name, key)
            if name in renamed.tensors:
                raise CheckpointError(f"{source}: two tensors become {name!r}, one of them is {key!r}")
            renamed.tensors[name] = tensor
    if foreign:
        listed = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise CheckpointError(f"{source}: no rule for {len(foreign)} tensors: {listed}")
    return renamed


# KDEP files were written by the robustness library (Engstrom et al., 2019): the net is under module.model, a second
# time under module.attacker.model, and the input normalisation beside both.
ROBUSTNESS = (
    Rule(r"module\.attacker\..*", None),
    Rule(r"module\.normalizer\.(new_mean|new_std)", r"normalizer.\1"),
    Rule(r"module\.model\.(?:model\.)?(.*)", r"\1"),
)

# KDEP's MobileNet-V2 (each block's layers in one flat Sequential, the last 1x1 convolution outside `features`) in
# torchvision's names, where convolution, norm and activation form groups of their own.
KDEP_MOBILENET_V2 = (
    Rule(r"features\.0\.([01])\.(.*)", r"features.0.\1.\2"),
    Rule(r"features\.1\.conv\.([01])\.(.*)", r"features.1.conv.0.\1.\2"),  # no expansion: depthwise first
    Rule(r"features\.1\.conv\.3\.(.*)", r"features.1.conv.1.\1"),
    Rule(r"features\.1\.conv\.4\.(.*)", r"features.1.conv.2.\1"),
    Rule(r"features\.(\d+)\.conv\.([01])\.(.*)", r"features.\1.conv.0.\2.\3"),  # expansion
    Rule(r"features\.(\d+)\.conv\.3\.(.*)", r"features.\1.conv.1.0.\2"),  # depthwise
    Rule(r"features\.(\d+)\.conv\.4\.(.*)", r"features.\1.conv.1.1.\2"),
    Rule(r"features\.(\d+)\.conv\.6\.(.*)", r"features.\1.conv.2.\2"),  # projection
    Rule(r"features\.(\d+)\.conv\.7\.(.*)", r"features.\1.conv.3.\2"),
    Rule(r"conv\.([01])\.(.*)", r"features.18.\1.\2"),
    Rule(r"classifier\.(weight|bias)", r"classifier.1.\1"),
    Rule(r"normalizer\.(.*)", r"normalizer.\1"),
)

PROJECTION = "@projection."
"""Prefix that a rule gives the tensors of a projection head, which is kept as a head."""

_COUNTED = r"(\d+\.(?:weight|bias|running_mean|running_var|num_batches_tracked))"
SELF_SUPERVISED: dict[str, tuple[Rule, ...]] = {
    # the student, its regression head, and the teacher in the same file
    "simreg": (
        Rule(r"(?:module\.)?encoder_q\.(?:module\.)?fc\..*", None),
        Rule(r"(?:module\.)?encoder_q\.(?:module\.)?(.*)", r"\1"),
        Rule(r"(?:module\.)?predict_q\.(?:module\.)?" + _COUNTED, PROJECTION + r"\1"),
        Rule(r"(?:module\.)?encoder_t\..*", None),
    ),
    # the query encoder; MoCo-v2's fc is a projection MLP, MoCo-v1's one linear layer
    "moco": (
        Rule(r"(?:module\.)?encoder_q\.fc\.((?:\d+\.)?(?:weight|bias))", PROJECTION + r"\1"),
        Rule(r"(?:module\.)?encoder_q\.(.*)", r"\1"),
        Rule(r"(?:module\.)?(encoder_k\..*|queue|queue_ptr)", None),
    ),
    "swav": (
        Rule(r"(?:module\.)?projection_head\." + _COUNTED, PROJECTION + r"\1"),
        Rule(r"(?:module\.)?prototypes.*", None),
        Rule(r"(?:module\.)?(.*)", r"\1"),
    ),
    # the backbone alone, the wrapped net, or the teacher of a full training file; its weight-normed head is left out
    "dino": (
        Rule(r"(?:module\.)?(?:teacher\.)?head\..*", None),
        Rule(r"(?:module\.)?(?:teacher\.)?(?:backbone\.)?(?:_orig_mod\.)?(.*)", r"\1"),
    ),
}
"""Files of self-supervised training: the backbone in its library's names, the projection head under `PROJECTION`."""

DATA_PARALLEL = (Rule(r"module\.(.*)", r"\1"), Rule(r"(.*)", r"\1"))


def complete(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Make the two conversions of an import, each with a note: half precision to float32, absent counters to 0."""
    notes = []
    half = [key for key, tensor in state.items() if tensor.dtype in (torch.float16, torch.bfloat16)]
    if half:
        kinds = sorted({str(state[key].dtype).removeprefix("torch.") for key in half})
        state = {key: tensor.float() if key in set(half) else tensor for key, tensor in state.items()}
        notes.append(f"{len(half)} tensors became float32 from {', '.join(kinds)}")
    counters = [key for key in expected if key.endswith("num_batches_tracked") and key not in state]
    if counters:
        state = state | {key: torch.zeros_like(expected[key]) for key in counters}
        notes.append(f"{len(counters)} absent num_batches_tracked became 0")
    return state, tuple(notes)
