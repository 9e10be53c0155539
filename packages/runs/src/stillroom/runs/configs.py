"""Run configurations: frozen dataclasses to JSON and back, so that `resume` reads the run's own config."""

import functools
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from cattrs.strategies import configure_tagged_union

from stillroom.backbone.checks import flag as to_flag
from stillroom.backbone.flags import Workers
from stillroom.backbone.names import is_checkpoint
from stillroom.runs.run_files import INPUTS, read_config, read_inputs

C = TypeVar("C")
_ADDRESS = re.compile("[a-z][a-z0-9+.-]+:/")  # s3://bucket/folder, of which Path makes one slash
ABSENT = "absent"
"""Key of a field's metadata: what a config.json without the field means, because an older version wrote it."""


def _converter(unions: tuple[Any, ...]) -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_structure_hook(Workers, lambda value, _: value if value == "auto" else int(value))
    for union in unions:
        configure_tagged_union(union, converter, tag_name="kind")
    return converter


def config_to_dict(config: Any, unions: tuple[Any, ...] = ()) -> dict[str, Any]:
    """A config as JSON values; members of `unions` have their class name as `kind`."""
    return _converter(unions).unstructure(config)


def config_to_json(config: Any, unions: tuple[Any, ...] = ()) -> str:
    """The text of config.json."""
    return json.dumps(config_to_dict(config, unions), indent=2) + "\n"


NETS = ("checkpoint", "like", "name")
"""Fields that name nets: checkpoint directories, or names of a library."""


def load_config(
    path: Path, kind: type[C], unions: tuple[Any, ...] = (), places: Mapping[str, Any] | None = None, **changes: Any
) -> C:
    """Read the config of the run in `path`, which may have been moved; `changes` that are not None replace fields.

    Relative paths in it are those of the run's working directory, as long as that exists.

    Args:
        path: the run directory.
        kind, unions: of the config.
        places: where inputs lie now, by field (`data`, `teacher.name`), see `to_places`; those of earlier resumes stay.
        changes: other fields.

    Raises:
        ValueError: not a run directory, or one of another version.
    """
    text, inputs = read_config(path), read_inputs(path)
    config: Any = config_from_json(text, kind, unions)
    base = Path(inputs.get("working_directory", ""))
    if base.is_dir() and base != Path.cwd():
        config = _below(config, base)
    if moved := {**inputs.get("moved", {}), **(places or {})}:
        raw = config_to_dict(config, unions)
        try:
            for name, value in moved.items():
                *parents, field = name.split(".")
                functools.reduce(dict.__getitem__, parents, raw)[field] = value
            config = config_from_json(json.dumps(raw), kind, unions)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the places in {path / INPUTS} do not fit the config of the run: {error}") from error
    return replace(config, out=path, **{name: value for name, value in changes.items() if value is not None})


def to_places(**flags: Any) -> dict[str, Any]:
    """The places that the flags of `resume` name, as absolute paths in JSON, by field of the config.

    Args:
        flags: None for one that was not passed; a double underscore is a dot (`teacher__name`).
    """
    passed = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    placed = {name: _place(value, Path.cwd(), is_net=True) for name, value in passed.items()}
    return json.loads(json.dumps(placed, default=str))


def _below(config: Any, base: Path) -> Any:
    """A config with its relative paths made absolute."""
    values = {field.name: (getattr(config, field.name), field.name in NETS) for field in fields(config)}
    return replace(config, **{name: _place(value, base, is_net=is_net) for name, (value, is_net) in values.items()})


def _place(value: Any, base: Path, *, is_net: bool) -> Any:
    if isinstance(value, tuple):
        return tuple(_place(one, base, is_net=is_net) for one in value)
    if isinstance(value, Path) and _ADDRESS.match(str(value)):
        return value
    if isinstance(value, Path) or (is_net and isinstance(value, str) and is_checkpoint(str(base / value))):
        return type(value)(base / value)
    return _below(value, base) if is_dataclass(value) else value


def refuse_ignored(config: Any, flag: str, kept: Collection[str]) -> None:
    """Raise ValueError for a setting, other than those `kept`, that has no effect because `flag` replaces it.

    Such a setting is a field that is not at its default; fields without a default are not checked.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.default not in (MISSING, value) and field.name not in (flag, *kept):
            raise ValueError(
                f"{to_flag(field.name)} is {value}, set by a flag or the preset, and has no effect beside "
                f"{to_flag(flag)}: leave it out, or use a preset without it"
            )


def config_from_json(text: str, kind: type[C], unions: tuple[Any, ...] = ()) -> C:
    """Read a config back; ValueError if it does not fit `kind`, because another version wrote it."""
    try:
        absent = {one.name: one.metadata[ABSENT] for one in fields(kind) if ABSENT in one.metadata}  # type: ignore
        return _converter(unions).structure({**absent, **json.loads(text)}, kind)
    except (cattrs.BaseValidationError, json.JSONDecodeError) as error:
        reasons = cattrs.transform_error(error) if isinstance(error, cattrs.BaseValidationError) else [str(error)]
        raise ValueError(f"this config does not fit the installed version: {'; '.join(reasons)}") from error
