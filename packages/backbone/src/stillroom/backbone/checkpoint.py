"""The checkpoint: a directory of safetensors and one manifest, written atomically, read strictly."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from stillroom.backbone.atomic import replace_directory
from stillroom.backbone.features import Backbone, weights_sha256
from stillroom.backbone.manifest import (
    ALIGNMENT,
    HEADS,
    MANIFEST,
    MODEL,
    CheckpointError,
    Data,
    FileRecord,
    Head,
    Manifest,
    Teacher,
    WeightsRecord,
    parse_model,
    read_files,
    reading_safetensors,
    refuse_non_finite,
)
from stillroom.backbone.provenance import made_by
from stillroom.backbone.registry import build_backbone
from stillroom.backbone.spec import BackboneSpec

_WRAPPERS = ("module.", "_orig_mod.")


def save_checkpoint(
    path: str | Path,
    backbone: Backbone,
    *,
    method: str,
    package: str,
    config: Mapping[str, Any] | None = None,
    teacher: Teacher | None = None,
    data: Data | None = None,
    heads: Mapping[str, tuple[Head, Mapping[str, Tensor]]] | None = None,
    alignment: bytes | None = None,
    notes: tuple[str, ...] = (),
) -> Manifest:
    """Write a checkpoint directory; an old one at `path` is replaced only when the new one is complete.

    Args:
        path: the directory.
        backbone: its weights, spec and licence are stored, its heads are not.
        method: how the weights were made: `kdep`, `supervised`, `import`, ...
        package: the distribution that writes it, for instance `stillroom-distill`.
        config: the run's settings, JSON values.
        teacher, data: provenance, for students.
        heads: name -> (description, tensors), stored in heads.safetensors as `<name>.<key>`.
        alignment: the bytes of the alignment file that the student was trained with.
        notes: conversions made on import, one sentence each.

    Raises:
        CheckpointError: wrapped nets (DDP, compiled), NaN or infinite values, something at `path` that is not a
            checkpoint, or no space left; nothing is half-written.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path} exists and is not a checkpoint: it is not replaced, choose another path")
    state = backbone.net.state_dict()
    wrapped = [key for key in state if key.startswith(_WRAPPERS)]
    if wrapped:
        raise CheckpointError(f"{path}: unwrap the net before saving it; its keys begin with {wrapped[0]!r}")
    kept = {f"{name}.{k}": t for name, (_, ts) in (heads or {}).items() for k, t in ts.items()}
    refuse_non_finite(find_non_finite(state | kept), f"{path} is not written")
    contents = {MODEL: _to_bytes(state)}
    if kept:
        contents[HEADS] = _to_bytes(kept)
    if alignment is not None:
        contents[ALIGNMENT] = alignment
    manifest = Manifest(
        backbone=backbone.spec,
        made_by=made_by(package, config),
        method=method,
        teacher=teacher,
        data=data,
        heads={name: head for name, (head, _) in (heads or {}).items()},
        files={name: FileRecord(sha256=hashlib.sha256(b).hexdigest(), bytes=len(b)) for name, b in contents.items()},
        weights=WeightsRecord(
            tensors=len(state),
            parameters=sum(p.numel() for p in backbone.net.parameters()),
            sha256=weights_sha256(backbone.net),
        ),
        notes=notes,
    )
    contents[MANIFEST] = manifest.to_json().encode()
    try:
        with replace_directory(path) as partial:
            for name, content in contents.items():
                (partial / name).write_bytes(content)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} could not be written ({error.strerror}): no file is half-written"
        ) from error
    return manifest


def load_checkpoint(path: str | Path, backbone: Backbone | None = None) -> tuple[Backbone, Manifest]:
    """Rebuild the backbone of a checkpoint. Every file is read once, its hash is checked, and every tensor must match.

    Args:
        path: the directory.
        backbone: for a user's module (`module/<class>`): the same net, wrapped, to be filled.

    Raises:
        CheckpointError: see `verify_checkpoint`; also tensors that are missing, foreign or of another shape, by name.
    """
    manifest, contents = read_files(path, MODEL)
    state = parse_model(Path(path), manifest, lambda: load(contents.pop(MODEL)))  # pop: the bytes go, the tensors stay
    spec = manifest.backbone
    if backbone is None:
        if spec.name.startswith("module/"):
            raise CheckpointError(
                f"checkpoint {path} holds {spec.name}, a net of your own: build it, wrap it with Backbone.from_module "
                f"and pass it as load_checkpoint(path, backbone=...)"
            )
        backbone = build_backbone(spec.name, arguments=spec.arguments)
    built = backbone.spec
    if (built.name, built.dim, built.levels) != (spec.name, spec.dim, spec.levels):
        raise CheckpointError(f"checkpoint {path} holds {_summarize(spec)}, not {_summarize(built)}")
    load_strictly(backbone, state, source=str(path))
    backbone = backbone.at(spec.feature)
    backbone.spec = spec
    return backbone, manifest


def load_strictly(backbone: Backbone, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into a backbone's net: same keys, shapes, types, finite; or an error with the names."""
    expected = backbone.net.state_dict()
    both = expected.keys() & state.keys()
    wrong = {
        "missing": expected.keys() - state.keys(),
        "foreign": state.keys() - expected.keys(),
        "of another shape": {k for k in both if expected[k].shape != state[k].shape},
        "of another type": {k for k in both if expected[k].dtype != state[k].dtype},
    }
    parts = [
        f"{len(keys)} {what}: {', '.join(sorted(keys)[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in wrong.items()
        if keys
    ]
    if parts:
        raise CheckpointError(f"{source} does not fit {backbone.spec.name}: {'; '.join(parts)}")
    refuse_non_finite(find_non_finite(state), source)
    backbone.net.load_state_dict(dict(state))


def find_non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinite values."""
    return [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]


def load_heads(path: str | Path, name: str) -> dict[str, Tensor]:
    """Load the tensors of one kept head, without their `<name>.` prefix.

    Raises:
        CheckpointError: no such head; see also `read_files`.
    """
    manifest, contents = read_files(path, HEADS)
    if name not in manifest.heads:
        raise CheckpointError(f"checkpoint {path} keeps no head named {name!r}; it keeps {sorted(manifest.heads)}")
    if HEADS not in contents:
        raise CheckpointError(f"checkpoint {path} describes the head {name!r} and lacks {HEADS}: copy it again")
    with reading_safetensors(Path(path) / HEADS):
        tensors = load(contents[HEADS])
    return {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}


def _summarize(spec: BackboneSpec) -> str:
    return f"{spec.name} of dim {spec.dim} with levels {', '.join(map(str, spec.levels)) or 'none'}"


def _to_bytes(state: Mapping[str, Tensor]) -> bytes:
    # cloned, because safetensors refuses tensors that share memory (tied weights)
    return save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}, {"format": "pt"})
