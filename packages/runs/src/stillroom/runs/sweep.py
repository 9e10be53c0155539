"""Many runs from one command: finished ones are kept, stopped ones are resumed, others are refused."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from stillroom.backbone.atomic import refuse_unwritable
from stillroom.backbone.flags import IfExists
from stillroom.runs.configs import config_to_dict
from stillroom.runs.results import RESULTS, read_results
from stillroom.runs.run_files import CONFIG, read_config

_FREE = frozenset(
    {"out", "download", "device", "workers", "cache", "figures", "embedding", "memory_gib", "log_every"}
    | {"save_every", "save_minutes", "if_exists", "executor", "executor_options"}
    | {"order"}  # a run that is resumed keeps its own
)
"""Settings that may differ when a run is kept or resumed: they change the last digits at most."""

_READABLE = 60  # characters


def run_or_resume(
    config: Any,
    unions: tuple[Any, ...],
    start: Callable[[Any], object],
    resume: Callable[[Path], object] | None = None,
) -> None:
    """Do a run unless it is finished; resume one that was stopped.

    Args:
        config: of the run; its `out` is the run directory.
        unions: fields of several variants in it.
        start: does the run from its beginning, and leaves results.json last.
        resume: resumes the run in a directory; None: a run leaves nothing before its end.

    Raises:
        ValueError: the directory holds a run with other settings.
    """
    if (config.out / RESULTS).exists():
        refuse_other(config, unions, read_results(config.out).made_by.config)
    elif resume is not None and (config.out / CONFIG).exists():
        refuse_other(config, unions, json.loads(read_config(config.out)))
        resume(config.out)
    else:
        start(config)


def refuse_taken(out: Path, *, alone: bool, if_exists: IfExists = "refuse") -> None:
    """Refuse, by a ValueError, a directory that exists (a single run's), or that holds a single run (a sweep's),
    or that cannot be created.

    With `if_exists` "resume" a single run may exist; `run_or_resume` then keeps or resumes it.
    """
    if alone and out.exists() and not (if_exists == "resume" and (out / CONFIG).exists()):
        if if_exists == "resume":
            raise ValueError(f"{out} exists and is not a run directory (it has no {CONFIG}): choose another --out")
        raise ValueError(
            f"{out} exists: choose another --out, or resume it with `resume {out}` or by --if-exists resume"
        )
    if not alone and ((out / CONFIG).exists() or out.is_file()):
        raise ValueError(f"{out} is a single run: choose another --out for a sweep")
    refuse_unwritable(out)


def refuse_unresumable(path: Path) -> None:
    """Refuse, by a ValueError, to resume a sweep's directory, or one without config.json."""
    if not (path / CONFIG).exists() and list(path.glob(f"*/{CONFIG}")):
        raise ValueError(f"{path} is a sweep: repeat its command, which resumes it")
    read_config(path)


def refuse_other(config: Any, unions: tuple[Any, ...], stored: Mapping[str, Any]) -> None:
    """Refuse, by a ValueError, a run directory whose stored settings differ in what changes its numbers.

    Equal are `auto` and what it chose, and the default of a setting and its absence, for an older version lacked it.

    Args:
        config: of the run; its `out` is the run directory.
        unions: fields of several variants in it.
        stored: the settings in the directory, as JSON values.
    """
    settings = json.loads(json.dumps(config_to_dict(config, unions)))  # tuples are lists there
    defaults = {one.name for one in fields(config) if getattr(config, one.name) == one.default}
    names = (settings.keys() | stored.keys()) - _FREE - (defaults - stored.keys())
    if differ := sorted(name for name in names if settings.get(name) not in (stored.get(name), "auto")):
        raise ValueError(f"{config.out} is a run with other settings ({', '.join(differ)}): choose another --out")


def directory_name(name: str) -> str:
    """Turn a net's name into a directory's: its end as far as files allow, and a hash that tells it apart."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[-_READABLE:].strip("-")
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def refuse_twice(values: Sequence[object], flag: str) -> None:
    """Refuse, by a ValueError, a value that is passed twice: it would be one run, and count as two."""
    if twice := [str(value) for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{flag} lists {twice[0]} twice: pass it once")
