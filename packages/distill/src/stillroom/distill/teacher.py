"""Frozen teachers: built from a name, run live or read from a cache, and aligned with the students' widths."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from stillroom.backbone import Backbone, Normalize, load_backbone, load_checkpoint, replace_input, weights_sha256
from stillroom.backbone.checkpoint import load_heads
from stillroom.backbone.flags import Amp
from stillroom.backbone.heads import build_head
from stillroom.backbone.initial import refuse_size
from stillroom.backbone.names import RANDOM, is_checkpoint
from stillroom.backbone.registry import open_net
from stillroom.backbone.seeds import seed_everything
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.alignment_file import AlignmentInputs
from stillroom.distill.folding import fold_batch_norms
from stillroom.distill.nets import Net, Output
from stillroom.distill.sharding import Shards
from stillroom.runs import Run
from stillroom.runs.hardware import hold_weights
from stillroom.runs.store import Store

HEADS = {"projection": "projection", "logits": "classifier"}
"""The name in heads.safetensors of the head that computes an output."""


class TeacherOutput(NamedTuple):
    """What a teacher computes of a batch: `features` (b, D), which the students regress, and its feature maps."""

    features: Tensor
    maps: tuple[Tensor, ...] = ()


class FrozenTeacher(nn.Module):
    """Pixels -> the output that students regress, without gradients.

    Args:
        backbone: in eval mode; its specification says how images are normalised.
        output: see `Output`.
        head: the projection head or the classifier, for the outputs that need one.

    Attributes:
        dim: width of the output, D.
        sha256: hash of the weights before batch norms are folded.
        head_sha256: hash of the head's weights; None without a head.
        shards: what divides its weights over several processes; None: each process has all of them.
    """

    def __init__(self, backbone: Backbone, output: Output = "feature", head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = output
        self.head = head
        self.normalize = Normalize(backbone.spec.input)
        self.sha256 = weights_sha256(backbone.net)
        self.head_sha256 = None if head is None else weights_sha256(head)
        self.shards: Shards | None = None
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
                assert head is not None, "load_output_head returns one or raises"
                self.dim = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1].out_features

    @torch.no_grad()
    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> TeacherOutput:
        """Normalise, run the net and read the output, as float32."""
        normalized = self.normalize(images).contiguous(memory_format=torch.channels_last)
        features = self.backbone(normalized)
        match self.output:
            case "feature":
                output = features.pooled
            case "class":
                output = features.class_token
            case "patches":
                output = features.maps[-1].mean(dim=(2, 3))
            case "class+patches":
                output = torch.cat([features.class_token, features.maps[-1].mean(dim=(2, 3))], dim=1)
            case _:
                assert self.head is not None
                output = self.head(features.pooled)
        return TeacherOutput(output.float(), features.maps)

    def place(self, run: Run, *, shard: bool = False) -> "FrozenTeacher":
        """Move it to the run's device, or divide its weights over the processes; ValueError if there is only one."""
        if not shard:
            return self.to(run.device)
        if run.world_size == 1:
            raise ValueError("--shard-teacher divides weights over several processes, and this is one: use torchrun")
        size = self.backbone.spec.input.size
        self.shards = Shards(self, torch.zeros(1, 3, size, size, dtype=torch.uint8, device=run.device), run)
        return self

    def held(self, amp: Amp, device: torch.device) -> "FrozenTeacher":
        """The teacher for `autocast`, see `hold_weights`; divided weights stay as they are."""
        return hold_weights(self, amp, device) if self.shards is None else self

    def finish_pass(self) -> None:
        """End a pass over images in which processes may have different numbers of batches."""
        if self.shards is not None:
            self.shards.finish()


@dataclass(frozen=True, kw_only=True)
class CachedTeacher:
    """A teacher's outputs on disk, one store per view; see `stillroom.distill.cache`.

    Args:
        stores: row i of store v belongs to view v of image i.
        aligned: whether the rows are aligned targets rather than outputs.
        imported: what is known of the file that the rows were imported from, for results.json; None: from the teacher.
    """

    stores: tuple[Store, ...]
    aligned: bool
    imported: dict[str, Any] | None = None

    def read(self, epoch: int, indices: Int[Tensor, " b"], device: torch.device | None = None) -> Float[Tensor, "b d"]:
        """The rows of some images in one epoch, float32, on a device; None: the CPU."""
        rows = self.stores[epoch % len(self.stores)].read(indices)
        if device is not None and device.type == "cuda":
            rows = rows.pin_memory()  # the copy then waits for nothing
        return rows.to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """One teacher's part in a run.

    Args:
        teacher: frozen, on the run's device.
        weight: of its loss; the weights of all teachers sum to 1.
        targets: its alignment with each student.
        inputs: what these alignments were fitted on.
        cache: its outputs on disk; None: the teacher runs in every step.
    """

    teacher: FrozenTeacher
    weight: float
    targets: tuple[AlignedTarget, ...]
    inputs: AlignmentInputs
    cache: CachedTeacher | None = None

    @torch.no_grad()  # the root of PTS has an infinite slope at 0
    def align(self, features: Float[Tensor, "b D"]) -> list[Tensor]:
        """Each student's target for a batch, from the teacher's features or the cache's rows."""
        if self.cache is not None and self.cache.aligned:
            return [features for _ in self.targets]
        return [target(features) for target in self.targets]


def build_teacher(net: Net, backbone: Backbone | None = None) -> FrozenTeacher:
    """Build a teacher with the feature, the input size and the head that its settings name.

    A random teacher has the same weights in every run.

    Args:
        net: settings.
        backbone: a net of the user's; its name in `net` is then only a label.

    Raises:
        ValueError: unknown name, missing download, an input size that the net does not take, or an output that it does
            not have.
    """
    seed_everything(0)
    is_custom = backbone is not None
    backbone = load_backbone(net.name) if backbone is None else copy.deepcopy(backbone).cpu()  # a copy, for folding
    head = None
    if net.output in HEADS:
        head = load_output_head(net, is_custom=is_custom)
        backbone = backbone.at("after")  # heads are trained on the feature after the last activation
    else:
        backbone = backbone.at(net.feature)
    # channels last: 1.6 times the images/s of contiguous tensors for MobileNet-V2 at 128 px on two CPU cores
    backbone = backbone.to(memory_format=torch.channels_last)
    backbone = replace_input(backbone, size=net.size, crop_fraction=net.crop_fraction)
    spec = backbone.spec.input
    refuse_infinite_weights(backbone, net.name)
    refuse_size(backbone, spec.size, spec.size, "pass another --teacher.size")
    if net.channel_order not in ("own", spec.channel_order):  # mean and std are in the order of the channels
        changes = {"channel_order": net.channel_order, "mean": spec.mean[::-1], "std": spec.std[::-1]}
        backbone = replace_input(backbone, **changes)
    teacher = FrozenTeacher(backbone, net.output, head)
    example = torch.rand(1, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))
    fold_batch_norms(backbone, example)
    return teacher


def refuse_infinite_weights(backbone: Backbone, name: str) -> None:
    """Raise ValueError if a net has weights that are NaN or infinite."""
    if bad := [key for key, tensor in backbone.net.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(f"{name} has weights that are not finite, such as {bad[0]}: train or import it again")


def load_output_head(net: Net, *, is_custom: bool) -> nn.Module:
    """The projection head or the classifier that belongs to a teacher.

    Args:
        net: settings.
        is_custom: whether the teacher is a net of the user's, which has no head.

    Raises:
        ValueError: the teacher has no such head.
    """
    name = HEADS[net.output]
    missing = f"teacher {net.name} has no {name}: --teacher.output {net.output} needs it"
    if is_custom:
        raise ValueError(missing)
    if is_checkpoint(net.name):
        heads = load_checkpoint(net.name)[1].heads
        if name not in heads:
            raise ValueError(f"{missing}; its checkpoint has {', '.join(sorted(heads)) or 'no heads'}")
        return build_head(heads[name], load_heads(net.name, name))
    if name != "classifier":
        raise ValueError(missing)
    seed_everything(0)  # the seed of the backbone: a random net and its classifier come from the same draw
    is_random = net.name.startswith(RANDOM)
    classifier = open_net(net.name.removeprefix(RANDOM), pretrained=not is_random, arguments={})[1]
    if not isinstance(classifier, nn.Module):
        raise ValueError(missing)
    return classifier.eval()


def build_teachers(nets: Sequence[Net], backbones: Sequence[Backbone] | None = None) -> list[FrozenTeacher]:
    """Build one or several teachers.

    Args:
        nets: settings of each.
        backbones: nets of the user's, one per entry of `nets`.

    Raises:
        ValueError: see `build_teacher`; or another number of backbones than names.
    """
    if backbones is not None and len(backbones) != len(nets):
        raise ValueError(f"{len(backbones)} nets were passed for {len(nets)} teachers in the config: pass one for each")
    return [build_teacher(net, None if backbones is None else backbones[i]) for i, net in enumerate(nets)]
