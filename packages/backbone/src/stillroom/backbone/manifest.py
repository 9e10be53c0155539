"""`manifest.json`: schema 1 of a checkpoint, as data, with its reading, writing and upgrading."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cattrs
from safetensors import SafetensorError, safe_open

from stillroom.backbone.spec import BackboneSpec, Licence

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
HEADS = "heads.safetensors"
ALIGNMENT = "alignment.safetensors"

SCHEMA = 1
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a schema's number to the step that turns its manifest into the next schema's. Schema 1 is the first."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, trusted or written, said in one sentence."""


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """Who wrote the file: distribution, version, commit of the source tree (if any), command, config, torch, date."""

    package: str
    version: str
    commit: str | None
    command: str
    torch: str
    date: str
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher of a student: its name, the hash of its weights (`weights_sha256`), its licence."""

    name: str
    weights_sha256: str
    licence: Licence


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images a net was trained on: how many, and the fingerprint of their relative paths and sizes."""

    count: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file beside the manifest: its SHA-256 and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """The backbone's tensors: how many, how many numbers trained (parameters), and their common hash."""

    tensors: int
    parameters: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head kept in heads.safetensors under `<name>.`: its kind, its input and output widths, its classes if named."""

    kind: str
    in_dim: int
    out_dim: int
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that stands beside the weights of a checkpoint. The fields are those of `manifest.json`."""

    backbone: BackboneSpec
    made_by: MadeBy
    method: str
    files: dict[str, FileRecord]
    weights: WeightsRecord
    schema: int = SCHEMA
    teacher: Teacher | None = None
    data: Data | None = None
    heads: dict[str, Head] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    evaluations: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> str:
        """The text of manifest.json: `input` and `licence` stand beside `backbone`, not in it."""
        raw = cattrs.unstructure(self)
        raw["input"] = raw["backbone"].pop("input")
        raw["licence"] = raw["backbone"].pop("licence")
        return json.dumps(raw, indent=2) + "\n"


_STRICT = cattrs.Converter(forbid_extra_keys=True)


def read_manifest(file: Path) -> Manifest:
    """Read `manifest.json`, upgrading an older schema step by step.

    Raises:
        CheckpointError: missing or damaged file, newer schema, unknown or missing fields.
    """
    if not file.exists():
        raise CheckpointError(f"{file.parent} is not a checkpoint: it has no {file.name}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        schema = raw["schema"]
        if not isinstance(schema, int):
            raise TypeError(f"schema {schema!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error!r}; copy or make the checkpoint again") from error
    if schema > SCHEMA:
        raise CheckpointError(
            f"checkpoint {file.parent} has schema {schema}, this stillroom-backbone reads up to {SCHEMA}: "
            f"upgrade it with `pip install --upgrade stillroom-backbone`"
        )
    while schema < SCHEMA:
        if schema not in UPGRADES:
            raise CheckpointError(f"checkpoint {file.parent} has schema {schema}, which never existed")
        raw = UPGRADES[schema](raw)
        schema = raw["schema"]
    try:
        raw["backbone"] |= {"input": raw.pop("input"), "licence": raw.pop("licence")}
        return _STRICT.structure(raw, Manifest)
    except (cattrs.BaseValidationError, KeyError, TypeError, AttributeError) as error:
        reasons = cattrs.transform_error(error) if isinstance(error, cattrs.BaseValidationError) else [repr(error)]
        raise CheckpointError(f"{file} does not fit schema {SCHEMA}: {'; '.join(reasons)}") from error


def verify_checkpoint(path: str | Path) -> Manifest:
    """Check a checkpoint's manifest, and each file's presence, size and hash, without building the net.

    Raises:
        CheckpointError: not a checkpoint, newer schema, damaged manifest, or a file that is missing, truncated,
            altered or not listed.
    """
    path = Path(path)
    manifest = read_manifest(path / MANIFEST)
    if MODEL not in manifest.files:
        raise CheckpointError(f"{path / MANIFEST} does not list {MODEL}: copy or make the checkpoint again")
    for name, record in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path} lacks {name}: copy it again")
        size = file.stat().st_size
        if size != record.bytes:
            raise CheckpointError(f"{file} has {size} bytes, its manifest says {record.bytes}: copy it again")
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != record.sha256:
                raise CheckpointError(f"{file} does not have the hash in its manifest: it was altered, copy it again")
    unlisted = sorted(f.name for f in path.glob("*.safetensors") if f.name not in manifest.files)
    if unlisted:
        raise CheckpointError(f"checkpoint {path} holds {', '.join(unlisted)}, which its manifest does not list")
    try:
        with safe_open(path / MODEL, "np") as opened:
            tensors = opened.keys()
    except SafetensorError as error:
        raise CheckpointError(f"{path / MODEL} is not a safetensors file: {error}") from error
    if len(tensors) != manifest.weights.tensors:
        raise CheckpointError(f"{path / MODEL} has {len(tensors)} tensors, expected {manifest.weights.tensors}")
    return manifest
