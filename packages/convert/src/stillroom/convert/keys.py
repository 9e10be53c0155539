"""Key rules: the names of other projects' tensors here. Every key matches a rule, or is named in an error."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
