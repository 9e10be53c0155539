"""Frozen teachers: from a name to a net that answers, and what of its answer is regressed."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from stillroom.backbone import Backbone, Normalize, load_backbone, load_checkpoint, replace_input, weights_sha256
from stillroom.backbone.checkpoint import load_heads
from stillroom.backbone.heads import build_head
from stillroom.backbone.names import RANDOM, is_checkpoint
from stillroom.backbone.registry import open_net
from stillroom.backbone.run import seed_everything
from stillroom.distill.config import Net, Output
from stillroom.distill.folding import fold_batch_norms

KEPT = {"projection": "projection", "logits": "classifier"}
"""The head in heads.safetensors that an output is read from."""


class FrozenTeacher(nn.Module):
    """Pixels -> what is regressed of one teacher: normalise for it, run it without gradients, read its answer.

    Args:
        backbone: in eval mode, fed as its spec says.
        output: see `Output`.
        head: the projection head or the classifier, for the outputs that need one.

    Attributes:
        dim: width of the output, D.
        sha256: hash of the weights as they came, before batch norms are folded.
    """

    def __init__(self, backbone: Backbone, output: Output = "feature", head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = output
        self.head = head
        self.normalize = Normalize(backbone.spec.input)
        self.sha256 = weights_sha256(backbone.net)
        self.requires_grad_(False).eval()
        spec = backbone.spec
        if output in ("class", "class+patches") and not backbone.has_class_token:
            raise ValueError(f"{spec.name} has no class token: --teacher.output {output} is for ViTs that have one")
        if output in ("patches", "class+patches") and not spec.levels:
            raise ValueError(f"{spec.name} has no feature maps: --teacher.output {output} needs them")
        match output:
            case "feature":
                self.dim = spec.dim
            case "class" | "patches":
                self.dim = spec.levels[-1].channels
            case "class+patches":
                self.dim = 2 * spec.levels[-1].channels
            case _:
                assert head is not None, "the caller has found it or said that it is missing"
                self.dim = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1].out_features

    @torch.no_grad()
    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b D"], tuple[Tensor, ...]]:
        """The output, float32, and the feature maps."""
        fed = self.normalize(images).contiguous(memory_format=torch.channels_last)
        features = self.backbone(fed)
        match self.output:
            case "feature":
                answer = features.pooled
            case "class":
                answer = features.class_token
            case "patches":
                answer = features.maps[-1].mean(dim=(2, 3))
            case "class+patches":
                answer = torch.cat([features.class_token, features.maps[-1].mean(dim=(2, 3))], dim=1)
            case _:
                assert self.head is not None
                answer = self.head(features.pooled)
        return answer.float(), features.maps


def build_teacher(net: Net, own: Backbone | None = None) -> FrozenTeacher:
    """The teacher as the run reads it: its feature point, its input size, its head. A random one is the same always.

    Args:
        net: what was asked for.
        own: a net of the user's own, wrapped; the name is then only its label.

    Raises:
        ValueError: unknown name, missing download, or an output that this net has not got.
    """
    seed_everything(0)
    backbone = load_backbone(net.name) if own is None else copy.deepcopy(own).cpu()  # its batch norms will be folded
    head = None
    if net.output in KEPT:
        head = load_output_head(net, own is not None)
        backbone = backbone.at("after")  # which is what projection heads and classifiers are trained on
    else:
        backbone = backbone.at(net.feature)
    # channels last: 1.6 times the images/s of contiguous tensors for MobileNet-V2 at 128 px on two CPU cores
    backbone = backbone.to(memory_format=torch.channels_last)
    backbone = replace_input(backbone, size=net.size, crop_fraction=net.crop_fraction)
    given = backbone.spec.input
    if net.channel_order not in ("own", given.channel_order):  # mean and std stand in the order of the channels
        changes = {"channel_order": net.channel_order, "mean": given.mean[::-1], "std": given.std[::-1]}
        backbone = replace_input(backbone, **changes)
    teacher = FrozenTeacher(backbone, net.output, head)
    example = torch.rand(1, 3, given.size, given.size, generator=torch.Generator().manual_seed(0))
    fold_batch_norms(backbone, example)
    return teacher


def load_output_head(net: Net, own: bool) -> nn.Module:
    """The projection head or the classifier behind a teacher's name.

    Raises:
        ValueError: there is none.
    """
    name = KEPT[net.output]
    missing = f"teacher {net.name} comes without its {name}: --teacher.output {net.output} needs it"
    if own:
        raise ValueError(missing)
    if is_checkpoint(net.name):
        heads = load_checkpoint(net.name)[1].heads
        if name not in heads:
            raise ValueError(f"{missing}; its checkpoint keeps {', '.join(sorted(heads)) or 'no heads'}")
        return build_head(heads[name], load_heads(net.name, name))
    if name != "classifier":
        raise ValueError(missing)
    seed_everything(0)  # as the backbone was: a random net and its classifier are drawn together
    random = net.name.startswith(RANDOM)
    classifier = open_net(net.name.removeprefix(RANDOM), pretrained=not random, arguments={})[1]
    if not isinstance(classifier, nn.Module):
        raise ValueError(missing)
    return classifier.eval()


def build_teachers(nets: Sequence[Net], own: Sequence[Backbone] | None = None) -> list[FrozenTeacher]:
    """One or several teachers.

    Raises:
        ValueError: see `build_teacher`; also as many nets of one's own as names, or none.
    """
    if own is not None and len(own) != len(nets):
        raise ValueError(f"{len(own)} nets were passed for {len(nets)} teachers in the config: they go by pairs")
    return [build_teacher(net, own[i] if own is not None else None) for i, net in enumerate(nets)]
