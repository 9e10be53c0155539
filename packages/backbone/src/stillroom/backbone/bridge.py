"""Between our backbones and the models of a framework: which name for each tensor there, and the way back."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from stillroom.backbone.checkpoint import load_strictly
from stillroom.backbone.features import Backbone
from stillroom.backbone.keys import Rule, rename
from stillroom.backbone.manifest import CheckpointError
from stillroom.backbone.registry import build_backbone
from stillroom.backbone.spec import BackboneSpec

ASIDE = "@aside."
"""Begins the names of tensors that have no place there."""


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """A backbone's place in a model.

    Args:
        spec: of our backbone.
        rules: from our tensors' names to those in the model, or to `ASIDE`.
        places: what the model's names of these tensors begin with; all that begins so is ours. `""`: all of it is.
        fresh: pattern of what begins so and is not ours for all that.
    """

    spec: BackboneSpec
    rules: tuple[Rule, ...]
    places: tuple[str, ...] = ("",)
    fresh: str | None = None

    def to_framework(self, backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors under the model's names, and under ours those that have no place there.

        Raises:
            CheckpointError: a tensor without a rule.
        """
        renamed = rename(backbone.net.state_dict(), self.rules, backbone.spec.name).tensors
        aside = {name.removeprefix(ASIDE): t for name, t in renamed.items() if name.startswith(ASIDE)}
        return {name: t for name, t in renamed.items() if not name.startswith(ASIDE)}, aside

    def owns(self, name: str) -> bool:
        """Whether a tensor of the model, by its name, is ours."""
        return name.startswith(self.places) and not (self.fresh and re.fullmatch(self.fresh, name))

    def own(self, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of a model's tensors that are ours."""
        return {name: tensor for name, tensor in model.items() if self.owns(name)}

    def load(self, model: nn.Module, backbone: Backbone) -> None:
        """Give a model our weights, each of them, and nothing else.

        Raises:
            CheckpointError: tensors that are missing, foreign or of another shape, by name.
        """
        tensors, _ = self.to_framework(backbone)
        state = model.state_dict()
        own = self.own(state)
        wrong = sorted(own.keys() ^ tensors.keys())
        wrong += sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
        refuse(wrong, len(own), "do not fit the checkpoint's")
        model.load_state_dict(state | tensors)
        assert_same(self.own(model.state_dict()), tensors)

    def from_framework(self, model: Mapping[str, Tensor], initial: Backbone) -> Backbone:
        """Our backbone with a trained model's tensors; those that had no place there are as they came.

        Args:
            model: the whole model's state.
            initial: the backbone that it began with.

        Raises:
            CheckpointError: tensors that are missing, foreign or of another shape, by name.
        """
        backbone = build_backbone(self.spec.name, arguments=self.spec.arguments).at(self.spec.feature)
        own = backbone.net.state_dict()
        theirs = rename(own, self.rules, self.spec.name).tensors
        ours = dict(zip(theirs, own, strict=True))  # in the same order: no rule leaves a tensor out
        _, aside = self.to_framework(initial)
        state = {ours.get(name, name): tensor.cpu() for name, tensor in self.own(model).items()}
        load_strictly(backbone, state | aside, source="the model's backbone")
        backbone.spec = self.spec
        return backbone

    def count(self, model: nn.Module) -> str:
        """How many of the model's tensors in our places are ours, counters of batches aside, and where all are not."""
        names = [n for n in model.state_dict() if n.startswith(self.places) and not n.endswith("num_batches_tracked")]
        counts = {}
        for place in self.places:
            own = [name for name in names if name.startswith(place)]
            counts[place.rstrip(".")] = (sum(map(self.owns, own)), len(own))
        ours, total = map(sum, zip(*counts.values(), strict=True))
        parts = ", ".join(f"{place}: {some} of {all_}" for place, (some, all_) in counts.items() if some < all_)
        more = f" ({parts})" if parts and len(counts) > 1 else ""
        return f"{ours} of {total} tensors of the backbone come from the checkpoint{more}"


def assert_same(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Check that a built model's part of ours holds exactly these tensors, to the bit.

    Raises:
        CheckpointError: tensors that are missing, foreign or differ, by name.
    """
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += sorted(k for k in own.keys() & tensors.keys() if not own[k].cpu().equal(tensors[k].cpu()))
    refuse(wrong, len(own), "are not the checkpoint's")


def refuse(wrong: list[str], total: int, words: str) -> None:
    """Refuse tensors, by name.

    Raises:
        CheckpointError: where there are any.
    """
    if wrong:
        more = ", ..." if len(wrong) > 5 else ""
        raise CheckpointError(
            f"{len(wrong)} of {total} tensors of the model's backbone {words}: {', '.join(wrong[:5])}{more}"
        )
