"""Many runs from one command: those that are done are kept, those that were stopped go on."""

import hashlib
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from stillroom.backbone.atomic import write_file
from stillroom.backbone.configs import config_to_dict
from stillroom.backbone.manifest import MANIFEST, read_manifest
from stillroom.backbone.names import KEYWORDS, first_net, is_checkpoint, refuse_missing_checkpoint
from stillroom.backbone.results import RESULTS, DatasetRecord, read_results
from stillroom.backbone.run_files import CONFIG, read_config

_FREE = frozenset(
    {"out", "download", "device", "workers", "cache", "figures", "embedding", "memory_gib", "log_every", "save_every"}
)
"""Fields of a config that may differ when a run is kept or gone on with: they change the last digits at most."""

FINGERPRINTS = "fingerprints.json"
"""Of the data that a run began with."""

_READABLE = 60  # characters


@runtime_checkable
class HasOut(Protocol):
    """A config with a run directory."""

    @property
    def out(self) -> Path: ...


C = TypeVar("C", bound=HasOut)


@runtime_checkable
class FromFirstWeights(HasOut, Protocol):
    """A config of runs that differ in their first weights and seeds."""

    @property
    def checkpoint(self) -> tuple[str, ...]: ...

    @property
    def seeds(self) -> tuple[int, ...]: ...

    @property
    def like(self) -> str | None: ...


F = TypeVar("F", bound=FromFirstWeights)


def split(config: F) -> list[F]:
    """The single runs: the config itself, or one for each initialisation and seed, in directories of their own.

    Raises:
        ValueError: nothing to combine, the same twice, or a seed below 0.
    """
    for name in ("checkpoint", "seeds"):
        if not getattr(config, name):
            raise ValueError(f"--{name} is empty: give at least one")
        refuse_twice(getattr(config, name), f"--{name}")
    if min(config.seeds) < 0:
        raise ValueError(f"--seeds holds {min(config.seeds)}: seeds are 0 or more")
    if len(config.checkpoint) == len(config.seeds) == 1:
        return [config]
    like = config.like or first_net(config.checkpoint)
    cells = []
    for checkpoint, seed in product(config.checkpoint, config.seeds):
        cell = replace(  # type: ignore[type-var]  # no protocol says that it is a dataclass
            config, checkpoint=(checkpoint,), seeds=(seed,), like=like if checkpoint in KEYWORDS else None,
            out=config.out / f"{directory_name(checkpoint)}-seed{seed}",
        )  # fmt: skip
        cells.append(cell)
    return cells


def run_all(
    config: F,
    refuse_stale: Callable[[F], object],
    look_ahead: Callable[[F], object],
    start: Callable[[F], object],
    go_on: Callable[[Path], object],
) -> list[F]:
    """Do every run of a config: those that are done are kept, those that were stopped go on.

    What cannot work is found before the first one.

    Args:
        config: of one run, or of a sweep.
        refuse_stale: refuses to keep a run that is done and whose weights or data have changed since.
        look_ahead: reads what a run will begin with; called with one seed of each initialisation.
        start, go_on: see `once`.

    Returns:
        The single runs.

    Raises:
        ValueError: see `split`, `refuse_taken` and `once`.
    """
    runs = split(config)
    refuse_taken(config.out, alone=runs == [config])
    for run in runs:
        if (run.out / RESULTS).exists():
            refuse_stale(run)
    for run in {run.checkpoint: run for run in runs if not (run.out / CONFIG).exists()}.values():
        look_ahead(run)
    for run in runs:
        once(run, (), start, go_on)
    return runs


def keep_fingerprints(out: Path, records: Mapping[str, DatasetRecord]) -> None:
    """Write down what the data are that a run begins with."""
    write_file(out / FINGERPRINTS, json.dumps({role: record.fingerprint for role, record in records.items()}) + "\n")


def refuse_changed(out: Path, records: Mapping[str, DatasetRecord]) -> None:
    """Refuse to keep a run, or to go on with it, when its data are others than those that it began with.

    Raises:
        ValueError: with what changed.
    """
    began = json.loads((out / FINGERPRINTS).read_text(encoding="utf-8"))
    if changed := [record.path for role, record in records.items() if began.get(role) != record.fingerprint]:
        raise ValueError(f"what is in {changed[0]} changed since {out} began: choose another --out")


def once(
    config: C,
    unions: tuple[Any, ...],
    start: Callable[[C], object],
    go_on: Callable[[Path], object] | None = None,
) -> None:
    """Do a run, unless it is done; go on with one that was stopped.

    Args:
        config: of the run.
        unions: its fields of several variants.
        start: does the run from its beginning; it leaves results.json last.
        go_on: resumes the run in a directory; None: a run leaves nothing before its end.

    Raises:
        ValueError: another run stands in the directory.
    """
    asked = config_to_dict(config, unions)
    if (config.out / RESULTS).exists():
        refuse_other(config.out, asked, read_results(config.out).made_by.config)
    elif go_on is not None and (config.out / CONFIG).exists():
        refuse_other(config.out, asked, json.loads(read_config(config.out)))
        go_on(config.out)
    else:
        start(config)


def refuse_taken(out: Path, *, alone: bool) -> None:
    """Refuse a directory that a single run, or a sweep, cannot go into.

    Raises:
        ValueError: a single run's directory exists; a sweep's is a file, or holds a single run.
    """
    if alone and out.exists():
        raise ValueError(f"{out} exists: choose another --out, or go on with it by `resume {out}`")
    if not alone and ((out / CONFIG).exists() or out.is_file()):
        raise ValueError(f"{out} is a single run: choose another --out for a sweep")


def refuse_paths(config: FromFirstWeights, *, alone: bool) -> None:
    """Refuse a run, or a sweep, whose directory is taken or whose checkpoints are not there; see `refuse_taken`.

    Raises:
        ValueError: in one sentence.
    """
    refuse_taken(config.out, alone=alone)
    for name in (*config.checkpoint, *filter(None, [config.like])):
        refuse_missing_checkpoint(name)


def refuse_other_weights(out: Path, name: str, initial_sha256: str) -> None:
    """Refuse to keep a run whose first checkpoint has been overwritten since.

    Args:
        out: of the run.
        name: of its first weights, as `--checkpoint` says them.
        initial_sha256: `weights_sha256` of what it began with.

    Raises:
        ValueError: the checkpoint holds other weights now.
    """
    if is_checkpoint(name) and read_manifest(Path(name) / MANIFEST).weights.sha256 != initial_sha256:
        raise ValueError(f"{out} began with other weights than {name} has now: choose another --out")


def resume_single(path: Path, go_on: Callable[[Path], object]) -> Path:
    """Go on with a single run, unless it is done. A sweep goes on when its command is given again.

    Raises:
        ValueError: see `refuse_unresumable`.
    """
    refuse_unresumable(path)
    if not (path / RESULTS).exists():
        go_on(path)
    return path


def refuse_unresumable(path: Path) -> None:
    """Refuse to go on with what is no single run.

    Raises:
        ValueError: a sweep's directory, or one without config.json.
    """
    if not (path / CONFIG).exists() and list(path.glob(f"*/{CONFIG}")):
        raise ValueError(f"{path} is a sweep: give its command again, and it goes on where it was")
    read_config(path)


def refuse_other(out: Path, asked: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a run directory whose settings differ in what changes its numbers.

    Raises:
        ValueError: with the names of the settings.
    """
    asked = json.loads(json.dumps(asked))  # tuples are lists there
    if differ := sorted(k for k in asked.keys() | found.keys() if k not in _FREE and asked.get(k) != found.get(k)):
        raise ValueError(f"{out} is a run with other settings ({', '.join(differ)}): choose another --out")


def directory_name(name: str) -> str:
    """A net's name as the name of a directory: the end of it as far as files allow, and a hash that tells it apart."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[-_READABLE:].strip("-")
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def refuse_twice(values: Sequence[object], flag: str) -> None:
    """Refuse what is named twice: it would be one run, and count as two.

    Raises:
        ValueError: with its name.
    """
    if twice := [str(value) for value, many in Counter(values).items() if many > 1]:
        raise ValueError(f"{flag} names {twice[0]} twice: name each once")


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, sample standard deviation of fractions, in percent."""
    apart = f" +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    mean = round(100 * statistics.mean(values), 1) + 0.0  # no minus before a zero
    return f"{mean:.1f}{apart}"
