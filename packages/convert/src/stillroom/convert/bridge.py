"""Our backbones in the models of a framework: the name of each tensor there, and the way back."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from stillroom.backbone.checkpoint import load_strictly
from stillroom.backbone.features import Backbone
from stillroom.backbone.manifest import CheckpointError
from stillroom.backbone.registry import build_backbone
from stillroom.backbone.spec import BackboneSpec
from stillroom.convert.keys import Rule, rename

UNUSED = "@unused."
"""Prefix, in the rules, of tensors that have no counterpart in the model."""


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """Where a backbone's tensors are in a framework's model.

    Args:
        spec: of our backbone.
        rules: from our tensors' names to those in the model, or to `UNUSED`; each tensor needs one.
        prefixes: of the model's names of these tensors; every tensor with one is the backbone's. `""`: all are.
        excluded: pattern of tensors that have a prefix and are not the backbone's nevertheless.
    """

    spec: BackboneSpec
    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ("",)
    excluded: str | None = None

    def to_framework(self, backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors under the model's names, and, under our names, those without a counterpart there."""
        renamed = rename(backbone.net.state_dict(), self.rules, backbone.spec.name).tensors
        unused = {name.removeprefix(UNUSED): t for name, t in renamed.items() if name.startswith(UNUSED)}
        return {name: t for name, t in renamed.items() if not name.startswith(UNUSED)}, unused

    def contains(self, name: str) -> bool:
        """Whether a tensor of the model, by its name, is the backbone's."""
        return name.startswith(self.prefixes) and not (self.excluded and re.fullmatch(self.excluded, name))

    def select(self, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The backbone's tensors among a model's."""
        return {name: tensor for name, tensor in model.items() if self.contains(name)}

    def load(self, model: nn.Module, backbone: Backbone) -> None:
        """Load all weights of a backbone into a model; CheckpointError names tensors that do not fit."""
        tensors, _ = self.to_framework(backbone)
        state = model.state_dict()
        _refuse_different(self.select(state), tensors, lambda a, b: a.shape == b.shape, "do not fit the checkpoint's")
        model.load_state_dict(state | tensors)
        assert_same(self.select(model.state_dict()), tensors)

    def from_framework(self, model: Mapping[str, Tensor], initial: Backbone) -> Backbone:
        """Our backbone with the tensors of a trained model's state dict; those without a counterpart are `initial`'s.

        Raises:
            CheckpointError: tensors that are missing, foreign or of another shape, by name.
        """
        backbone = build_backbone(self.spec.name, arguments=self.spec.arguments).at(self.spec.feature)
        state = backbone.net.state_dict()
        theirs = rename(state, self.rules, self.spec.name).tensors
        ours = dict(zip(theirs, state, strict=True))  # in the same order: no rule leaves a tensor out
        _, unused = self.to_framework(initial)
        trained = {ours.get(name, name): tensor.cpu() for name, tensor in self.select(model).items()}
        load_strictly(backbone, trained | unused, source="the model's backbone")
        backbone.spec = self.spec
        return backbone

    def count(self, model: nn.Module) -> str:
        """A sentence: how many of the model's tensors come from the checkpoint (batch counters left out)."""
        names = [n for n in model.state_dict() if n.startswith(self.prefixes) and not n.endswith("num_batches_tracked")]
        counts = {}
        for prefix in self.prefixes:
            part = [name for name in names if name.startswith(prefix)]
            counts[prefix.rstrip(".")] = (sum(map(self.contains, part)), len(part))
        loaded, total = map(sum, zip(*counts.values(), strict=True))
        parts = ", ".join(f"{prefix}: {some} of {all_}" for prefix, (some, all_) in counts.items() if some < all_)
        more = f" ({parts})" if parts and len(counts) > 1 else ""
        return f"{loaded} of {total} tensors of the backbone come from the checkpoint{more}"


def assert_same(model: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, with names, unless a model's backbone holds exactly these tensors, to the bit."""
    _refuse_different(model, tensors, lambda a, b: a.cpu().equal(b.cpu()), "are not the checkpoint's")


def _refuse_different(
    model: Mapping[str, Tensor], tensors: Mapping[str, Tensor], same: Callable[[Tensor, Tensor], bool], words: str
) -> None:
    wrong = sorted(model.keys() ^ tensors.keys())
    wrong += sorted(k for k in model.keys() & tensors.keys() if not same(model[k], tensors[k]))
    if wrong:
        more = ", ..." if len(wrong) > 5 else ""
        raise CheckpointError(
            f"{len(wrong)} of {len(model)} tensors of the model's backbone {words}: {', '.join(wrong[:5])}{more}"
        )
