"""Run configurations: frozen dataclasses to JSON and back, so that `resume` reads the run's own config."""

import json
from collections.abc import Collection
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from cattrs.strategies import configure_tagged_union

from stillroom.backbone.checks import flag as to_flag
from stillroom.backbone.run_files import read_config

C = TypeVar("C")


def _converter(unions: tuple[Any, ...]) -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    for union in unions:
        configure_tagged_union(union, converter, tag_name="kind")
    return converter


def config_to_dict(config: Any, unions: tuple[Any, ...] = ()) -> dict[str, Any]:
    """A config as JSON values; members of `unions` have their class name as `kind`."""
    return _converter(unions).unstructure(config)


def config_to_json(config: Any, unions: tuple[Any, ...] = ()) -> str:
    """The text of config.json."""
    return json.dumps(config_to_dict(config, unions), indent=2) + "\n"


def load_config(path: Path, kind: type[C], unions: tuple[Any, ...] = (), **changes: Any) -> C:
    """Read the config of the run in `path`, which may have been moved; `changes` that are not None replace fields.

    Raises:
        ValueError: not a run directory, or one of another version.
    """
    config: Any = config_from_json(read_config(path), kind, unions)
    return replace(config, out=path, **{name: value for name, value in changes.items() if value is not None})


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
        return _converter(unions).structure(json.loads(text), kind)
    except (cattrs.BaseValidationError, json.JSONDecodeError) as error:
        reasons = cattrs.transform_error(error) if isinstance(error, cattrs.BaseValidationError) else [str(error)]
        raise ValueError(f"this config does not fit the installed version: {'; '.join(reasons)}") from error
