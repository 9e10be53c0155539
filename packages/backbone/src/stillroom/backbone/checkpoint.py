"""The checkpoint: a directory of safetensors and one manifest, written aside and renamed, read strictly."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
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
    verify_checkpoint,
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
    """Write a checkpoint directory; an old one at `path` is replaced only when the new one is whole.

    Args:
        path: the directory.
        backbone: its weights, spec and licence are stored, its heads are not.
        method: how the weights came to be: `kdep`, `supervised`, `import`, ...
        package: the distribution that writes, for instance `stillroom-distill`.
        config: the run's settings, JSON values.
        teacher, data: provenance, for students.
        heads: name -> (description, tensors), stored in heads.safetensors as `<name>.<key>`.
        alignment: the bytes of the alignment file that the student was trained against.
        notes: conversions made on import, one sentence each.

    Raises:
        CheckpointError: wrapped nets (DDP, compiled), something at `path` that is no checkpoint, or no space left;
            nothing is half-written.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path} exists and is no checkpoint: it is not replaced, choose another place")
    state = backbone.net.state_dict()
    wrapped = [key for key in state if key.startswith(_WRAPPERS)]
    if wrapped:
        raise CheckpointError(f"{path}: unwrap the net before saving it; its keys begin with {wrapped[0]!r}")
    contents = {MODEL: _to_bytes(state)}
    if heads:
        contents[HEADS] = _to_bytes({f"{name}.{k}": t for name, (_, ts) in heads.items() for k, t in ts.items()})
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
        with replace_directory(path) as aside:
            for name, content in contents.items():
                (aside / name).write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} could not be written ({error.strerror}): nothing was kept") from error
    return manifest


def load_checkpoint(path: str | Path, backbone: Backbone | None = None) -> tuple[Backbone, Manifest]:
    """Rebuild the backbone of a checkpoint. Every file's hash is checked and every tensor must match.

    Args:
        path: the directory.
        backbone: for a net of the user's own (`module/<class>`): the same net, wrapped, to be filled.

    Raises:
        CheckpointError: see `verify_checkpoint`; also tensors that are missing, foreign or of another shape, by name.
    """
    manifest = verify_checkpoint(path)
    spec = manifest.backbone
    if backbone is None:
        if spec.name.startswith("module/"):
            raise CheckpointError(
                f"checkpoint {path} holds {spec.name}, a net of your own: build it, wrap it with Backbone.from_module "
                f"and pass it as load_checkpoint(path, backbone=...)"
            )
        backbone = build_backbone(spec.name, arguments=spec.arguments)
    own = backbone.spec
    if (own.name, own.dim, own.levels) != (spec.name, spec.dim, spec.levels):
        raise CheckpointError(f"checkpoint {path} holds {_briefly(spec)}, not {_briefly(own)}")
    load_strictly(backbone, load_file(Path(path) / MODEL), source=str(path))
    backbone = backbone.at(spec.feature)
    backbone.spec = spec
    return backbone, manifest


def load_strictly(backbone: Backbone, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a backbone's net with `state`: same keys, shapes and types, or an error that names the tensors."""
    own = backbone.net.state_dict()
    missing = sorted(own.keys() - state.keys())
    foreign = sorted(state.keys() - own.keys())
    both = own.keys() & state.keys()
    reshaped = sorted(k for k in both if own[k].shape != state[k].shape)
    retyped = sorted(k for k in both if own[k].dtype != state[k].dtype)
    if missing or foreign or reshaped or retyped:
        parts = [
            f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
            for what, keys in (
                ("missing", missing),
                ("foreign", foreign),
                ("of another shape", reshaped),
                ("of another type", retyped),
            )
            if keys
        ]
        raise CheckpointError(f"{source} does not fit {backbone.spec.name}: {'; '.join(parts)}")
    backbone.net.load_state_dict(dict(state))


def load_heads(path: str | Path, name: str) -> dict[str, Tensor]:
    """The tensors of one kept head, without their `<name>.` prefix.

    Raises:
        CheckpointError: when the checkpoint keeps no such head.
    """
    manifest = verify_checkpoint(path)
    if name not in manifest.heads:
        raise CheckpointError(f"checkpoint {path} keeps no head named {name!r}; it keeps {sorted(manifest.heads)}")
    tensors = load_file(Path(path) / HEADS)
    return {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}


def _briefly(spec: BackboneSpec) -> str:
    return f"{spec.name} of dim {spec.dim} with levels {', '.join(map(str, spec.levels)) or 'none'}"


def _to_bytes(state: Mapping[str, Tensor]) -> bytes:
    # cloned, because safetensors refuses tensors that share memory (tied weights)
    return save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}, {"format": "pt"})
