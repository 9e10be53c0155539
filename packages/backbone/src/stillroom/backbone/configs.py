"""Run configurations: frozen dataclasses to JSON and back, so that `resume` reads what the run began with."""

import json
from collections.abc import Collection
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from cattrs.strategies import configure_tagged_union

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
    """JSON values of a config; members of `unions` carry their class name as `kind`."""
    return _converter(unions).unstructure(config)


def config_to_json(config: Any, unions: tuple[Any, ...] = ()) -> str:
    """The text of config.json."""
    return json.dumps(config_to_dict(config, unions), indent=2) + "\n"


def reread_config(path: Path, kind: type[C], unions: tuple[Any, ...] = (), **changes: Any) -> C:
    """What a run began with, by its directory, which may have been moved since.

    Args:
        path: the run directory; the config's `out`.
        kind: of the config.
        unions: its fields of several variants.
        changes: fields that are replaced; None keeps what the run began with.

    Raises:
        ValueError: no run directory, or one of another version.
    """
    config: Any = config_from_json(read_config(path), kind, unions)
    return replace(config, out=path, **{name: value for name, value in changes.items() if value is not None})


def refuse_beside(config: Any, flag: str, kept: Collection[str]) -> None:
    """Refuse settings that would not count, because another one decides in their place.

    Args:
        config: a dataclass; its fields without a default always count.
        flag: name of the field that decides.
        kept: names of those that count beside it.

    Raises:
        ValueError: with the first that is not at its default.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.default not in (MISSING, value) and field.name not in (flag, *kept):
            name, leader = (f"--{word.replace('_', '-')}" for word in (field.name, flag))
            raise ValueError(
                f"{name} is {value}, by a flag or the preset, and would not count beside {leader}: "
                "leave it out, or take a preset without it"
            )


def config_from_json(text: str, kind: type[C], unions: tuple[Any, ...] = ()) -> C:
    """Read a config back.

    Raises:
        ValueError: when it does not fit `kind`, which means another version wrote it.
    """
    try:
        return _converter(unions).structure(json.loads(text), kind)
    except (cattrs.BaseValidationError, json.JSONDecodeError) as error:
        reasons = cattrs.transform_error(error) if isinstance(error, cattrs.BaseValidationError) else [str(error)]
        raise ValueError(f"this config does not fit the installed version: {'; '.join(reasons)}") from error
