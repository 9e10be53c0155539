"""`manifest.json`: schema 1 of a checkpoint as data, with its reader, writer and upgrades, and the check of files."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cattrs
import numpy as np
from safetensors import SafetensorError, safe_open

from stillroom.backbone.spec import BackboneSpec, Licence

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
HEADS = "heads.safetensors"
ALIGNMENT = "alignment.safetensors"

T = TypeVar("T", bound=Sized)

SCHEMA = 1
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Schema number -> function that upgrades its manifest to the next schema. Schema 1 is the first."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, trusted or written; the message is one sentence."""


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """What wrote the file: distribution, version, commit of the source tree (if any), command, config, torch, date."""

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
    """The backbone's tensors: their number, the number of trained values (parameters), and one hash over all."""

    tensors: int
    parameters: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head kept in heads.safetensors under `<name>.`: its kind, input and output widths, and classes if named."""

    kind: str
    in_dim: int
    out_dim: int
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything in a checkpoint but the weights. The fields are those of `manifest.json`."""

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
        """The text of manifest.json: `input` and `licence` are beside `backbone`, not in it."""
        raw = cattrs.unstructure(self)
        raw["input"] = raw["backbone"].pop("input")
        raw["licence"] = raw["backbone"].pop("licence")
        return json.dumps(raw, indent=2) + "\n"


_STRICT = cattrs.Converter(forbid_extra_keys=True)


def kept_epochs(path: Path) -> list[int]:
    """The epochs that a run kept of its checkpoint `path`, each in a checkpoint of its own, `<path>@<epoch>`."""
    folders = [manifest.parent.name for manifest in path.parent.glob(f"*@*/{MANIFEST}")]
    matches = [re.fullmatch(rf"{re.escape(path.name)}@(\d+)", name) for name in folders]
    return sorted(int(match[1]) for match in matches if match)


def refuse_missing_epoch(path: Path) -> None:
    """Raise CheckpointError for `<checkpoint>@<epoch>` where the run did not keep that epoch."""
    name, _, epoch = path.name.rpartition("@")
    if not name or (path / MANIFEST).exists():
        return
    last = path.with_name(name)
    if epochs := kept_epochs(last):
        kept = f"those kept are {', '.join(map(str, epochs))}"
        raise CheckpointError(f"there is no epoch {epoch!r} of {last}: {kept}, named {last}@{epochs[0]} and so on")
    if (last / MANIFEST).exists():
        raise CheckpointError(f"there is no epoch {epoch!r} of {last}: none is kept without --keep-every in its run")


def read_manifest(file: Path) -> Manifest:
    """Read `manifest.json`, upgrading an older schema step by step.

    Raises:
        CheckpointError: missing or damaged file, newer schema, unknown or missing fields.
    """
    if not file.exists():
        refuse_missing_epoch(file.parent)
        raise CheckpointError(f"{file.parent} is not a checkpoint: it has no {file.name}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise CheckpointError(f"{file} is damaged: {error}; copy or make the checkpoint again") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(schema, int):
        raise CheckpointError(f"{file} is damaged: its schema is not a number; copy or make the checkpoint again")
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
        match error:
            case cattrs.BaseValidationError():
                reasons = cattrs.transform_error(error)
            case KeyError():
                reasons = [f"it has no {error.args[0]}"]
            case _:
                reasons = [str(error)]
        raise CheckpointError(f"{file} does not fit schema {SCHEMA}: {'; '.join(reasons)}") from error


def read_files(path: str | Path, *kept: str) -> tuple[Manifest, dict[str, bytes]]:
    """Read a checkpoint's manifest and check the presence, size and hash of each file it lists; each is read once.

    Args:
        path: the directory.
        kept: files whose bytes are returned: the very bytes that were hashed.

    Raises:
        CheckpointError: not a checkpoint, newer schema, damaged manifest, or a file that is missing, truncated,
            altered or not listed.
    """
    path, contents = Path(path), {}
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
        if name in kept:
            contents[name] = file.read_bytes()
            digest = hashlib.sha256(contents[name])
        else:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256")
        if digest.hexdigest() != record.sha256:
            raise CheckpointError(f"{file} does not have the hash in its manifest: it was altered, copy it again")
    unlisted = sorted(f.name for f in path.glob("*.safetensors") if f.name not in manifest.files)
    if unlisted:
        raise CheckpointError(f"checkpoint {path} holds {', '.join(unlisted)}, which its manifest does not list")
    return manifest, contents


@contextmanager
def reading_safetensors(file: Path) -> Iterator[None]:
    """Around the parsing of a file: CheckpointError if it is damaged."""
    try:
        yield
    except (SafetensorError, KeyError) as error:  # KeyError: an unknown type of numbers
        raise CheckpointError(f"{file} is not a safetensors file: {error}") from error


def parse_model(path: Path, manifest: Manifest, parse: Callable[[], T]) -> T:
    """Parse model.safetensors to tensors or names; CheckpointError if it is damaged or their number is wrong."""
    with reading_safetensors(path / MODEL):
        tensors = parse()
    if len(tensors) != manifest.weights.tensors:
        raise CheckpointError(f"{path / MODEL} has {len(tensors)} tensors, expected {manifest.weights.tensors}")
    return tensors


def verify_checkpoint(path: str | Path) -> Manifest:
    """Check a checkpoint without building the net or importing torch.

    Raises:
        CheckpointError: see `read_files` and `parse_model`; NaN or an infinite value in a tensor of float16, 32 or 64.
    """
    manifest, _ = read_files(path)
    parse_model(Path(path), manifest, lambda: safe_open(Path(path) / MODEL, "np").keys())
    for name in {MODEL, HEADS} & manifest.files.keys():
        with reading_safetensors(file := Path(path) / name), safe_open(file, "np") as opened:
            keys = [*opened.keys()]
            floats = [key for key in keys if opened.get_slice(key).get_dtype() in ("F16", "F32", "F64")]
            refuse_non_finite([key for key in floats if not np.isfinite(opened.get_tensor(key)).all()], str(path))
    return manifest


def refuse_non_finite(keys: Sequence[str], source: str) -> None:
    """Raise CheckpointError if there are `keys`: tensors of `source` that hold NaN or infinite values."""
    if keys:
        raise CheckpointError(
            f"{source}: {len(keys)} tensors hold NaN or infinite values, the first is {keys[0]}: such weights are "
            f"neither loaded nor stored, take those from before training diverged"
        )


def describe_manifest(manifest: Manifest) -> str:
    """A manifest as text, one line per entry."""
    spec, made = manifest.backbone, manifest.made_by
    lines: list[tuple[str, Any]] = [
        ("backbone", f"{spec.name} {spec.arguments or ''}".strip()),
        ("pooled", f"{spec.dim}-d, {spec.feature} the last activation"),
        ("levels", ", ".join(map(str, spec.levels)) or "none"),
        ("input", str(spec.input)),
        ("method", manifest.method),
        ("teacher", f"{manifest.teacher.name} {manifest.teacher.weights_sha256[:12]}" if manifest.teacher else "none"),
        ("data", f"{manifest.data.count} images {manifest.data.fingerprint[:12]}" if manifest.data else "not stated"),
        ("licence", "; ".join([spec.licence.spdx, *spec.licence.restrictions])),
        ("weights", f"{manifest.weights.tensors} tensors, {manifest.weights.parameters:,} parameters"),
        ("heads", ", ".join(f"{n} {h.kind} {h.in_dim}->{h.out_dim}" for n, h in manifest.heads.items()) or "none"),
        ("made by", f"{made.package} {made.version} ({made.commit or 'no commit'}) {made.date} torch {made.torch}"),
        ("command", made.command),
        *(("note", note) for note in manifest.notes),
        *(("file", f"{name} {record.bytes:,} bytes") for name, record in manifest.files.items()),
    ]
    return "\n".join(f"{name:10}{value}" for name, value in lines)
