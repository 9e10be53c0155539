"""The tensors of other projects' files: read without running pickled code, and chosen where a file holds several."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stillroom.backbone.manifest import CheckpointError
from stillroom.backbone.tensor_files import TensorFileError, load_tensors
from stillroom.convert.flags import Weights
from stillroom.convert.key_rules import EMA_MODULE, EMA_NAME, WRAPPER

State = dict[str, Tensor]

# Where training scripts put the tensors beside optimizer, epoch, ..., and their moving average beside those.
_RAW = ("model", "state_dict", "model_state_dict", "net", "module", "shadow", "params")  # params: BasicSR
_EXPANDED = 2**20  # numbers of a tensor that repeats what it holds
_DEPTH = 4  # of entries in entries; a damaged file may hold itself
_REMEDY = "save the tensors alone where they were trained, torch.save(model.state_dict(), FILE), and import that file"


class Placeholder:
    """Stands for a harmless object beside the tensors, which is not needed: nothing of its own class is run."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _plain_dict(*factory: object) -> dict[Any, Any]:
    return {}


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
_NUMBERS = ("bool", "bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "str_")
_PLACEHOLDERS = (
    "argparse.Namespace",
    "numpy.dtype",
    *(f"numpy.{name}" for name in _NUMBERS),
    "numpy.core.multiarray.scalar",  # NumPy 1
    "numpy._core.multiarray.scalar",  # NumPy 2
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),  # _local: Python 3.13
)
_FACTORIES = (bool, dict, float, int, list, str, tuple)  # of defaultdicts
HARMLESS: tuple[Any, ...] = (
    *((Placeholder, name) for name in _PLACEHOLDERS),
    (_plain_dict, "collections.defaultdict"),
    *((kind, f"builtins.{kind.__name__}") for kind in _FACTORIES),
)
"""What may stand beside tensors in a pickled file, in the form of `torch.serialization.safe_globals`; torch itself
allows its own types, OrderedDict, Counter, set, bytearray and complex."""


def load_content(file: Path) -> Any:
    """Load a .safetensors file or a pickled one with `weights_only=True`; of types, only torch's and `HARMLESS`.

    Raises:
        CheckpointError: missing or unreadable file, or other types in it.
    """
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return load_tensors(file, advice=f"copy or download it again, or {_REMEDY}", allowed=HARMLESS)
    except TensorFileError as error:
        sentence = f"{file} holds more than tensors and is not loaded (weights_only=True): it names {error.named}; "
        raise CheckpointError(sentence + _REMEDY if error.named else str(error)) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {' '.join(str(error).split())}") from error


def read_state(file: Path, weights: Weights | None = None) -> State:
    """Read the tensors of a file by name: bare, or from where training scripts put them (`model`, `state_dict`, ...).

    Args:
        file: .safetensors, or a pickled file.
        weights: `ema` or `raw`; None is the EMA where the file has one.

    Raises:
        CheckpointError: see `load_content`; no tensors in it, or not those of `weights`.
    """
    return keep_tensors(choose_weights(load_content(file), weights, str(file))[0], str(file))[0]


def keep_tensors(state: Mapping[str, Any], source: str) -> tuple[State, tuple[str, ...]]:
    """The tensors of a state dict, and a note of other entries, which `choose_weights` lets pass.

    Raises:
        CheckpointError: a tensor that is sparse, quantized or not on the CPU, or states more numbers than it holds.
    """
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu":
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
            raise CheckpointError(f"{source}: {key} is a tensor that is {kind}, expected a dense one: {_REMEDY}")
        held = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.numel() > max(held, _EXPANDED):
            raise CheckpointError(
                f"{source}: {key} states {tensor.numel():,} numbers and holds {held:,}: save {key}.contiguous()"
            )
    others = [key for key in state if key not in tensors]
    listed = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
    return tensors, (f"{len(others)} entries that are not tensors left out: {listed}",) if others else ()


def choose_weights(content: Any, weights: Weights | None, source: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Choose among the weights in a file; returns its entry, and a note if the file holds an EMA beside others.

    An EMA is an entry of its own (timm's `state_dict_ema`, `model_ema` of torchvision's references, the `teacher`
    beside the `student` of DINO, that of a callback of Lightning), or a module beside the net in one state dict
    (`ema_model.`, `model_ema.`).
    """
    raw, ema, name = _entries(content)
    if raw is None and ema is None:
        raise CheckpointError(
            f"{source} is not a state dict: expected tensors by name, bare or under {' or '.join(_RAW)}"
        )
    if weights == "ema" and ema is None:
        raise CheckpointError(f"{source} holds no EMA: leave --weights out, or pass --weights raw")
    if weights == "raw" and raw is None:
        raise CheckpointError(f"{source} holds only the EMA {name}: leave --weights out, or pass --weights ema")
    if ema is not None and weights != "raw":
        return ema, (f"the EMA {name} was taken" + (", not the raw weights beside it" if raw else ""),)
    assert raw is not None
    if not name:
        return raw, ()
    why = "" if ema else ", which are not tensors by name"
    return raw, (f"the raw weights were taken, not the EMA {name} beside them{why}",)


def _entries(content: Any, depth: int = 0) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str]:
    """The raw weights and the EMA of a file's content, each None if absent, and the name of the EMA."""
    if not isinstance(content, dict) or depth == _DEPTH:
        return None, None, ""
    if (state := _as_state(content)) is not None:
        return _split_ema(state)

    def inside(
        *names: str,
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str]:  # an entry may wrap its tensors once more
        entry = next((content[name] for name in names if isinstance(content.get(name), dict) and content[name]), None)
        return _entries(entry, depth + 1)

    if "current_model_state" in content:  # Lightning's WeightAveraging puts the average under state_dict
        return inside("current_model_state")[0], inside("state_dict")[0], "state_dict"
    if "student" in content and "teacher" in content:  # DINO: the teacher is the student's EMA
        return inside("student")[0], inside("teacher")[0], "teacher"
    if averages := _averages(content):
        states = {name: _entries(entry, depth + 1)[0] for name, entry in averages.items()}
        name = next((name for name, state in states.items() if state is not None), next(iter(states)))
        return inside(*_RAW, "student")[0], states[name], name
    return inside(*_RAW, "teacher", "student")


def _averages(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The entries of a file, and of Lightning's callbacks in it, that are called moving averages, by name."""
    callbacks = content.get("callbacks")
    owners = {"": content}
    if isinstance(callbacks, dict):
        owners |= {f"callbacks.{name}.": owner for name, owner in callbacks.items() if isinstance(owner, dict)}
    return {
        f"{prefix}{name}": entry
        for prefix, owner in owners.items()
        for name, entry in owner.items()
        if isinstance(entry, dict) and entry and re.fullmatch(EMA_NAME, str(name))
    }


def _as_state(content: Any) -> dict[str, Any] | None:
    """A dict of tensors by name, which may hold numbers, words and None beside them, as such; or None."""
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        return None
    plain = all(isinstance(value, Tensor | bool | int | float | str | None) for value in content.values())
    return dict(content) if plain and all(isinstance(key, str) for key in content) else None


def _split_ema(state: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str]:
    """Split one state dict by the module that a key lies in: an EMA, or not."""
    found = {key: re.match(rf"{WRAPPER}({EMA_MODULE})\.", key) for key in state}
    ema = {key[match.end() :]: state[key] for key, match in found.items() if match}
    raw = {key: tensor for key, tensor in state.items() if not found[key]}
    names = dict.fromkeys(match[1] for match in found.values() if match)
    return raw or None, ema or None, ", ".join(f"{name}." for name in names)
