"""Many runs from one command: finished ones are kept, stopped ones are resumed, others are refused."""

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
from stillroom.backbone.names import BARE, is_checkpoint, other_than_bare, refuse_missing_checkpoint
from stillroom.backbone.results import RESULTS, DatasetRecord, read_results
from stillroom.backbone.run_files import CONFIG, read_config

_FREE = frozenset(
    {"out", "download", "device", "workers", "cache", "figures", "embedding", "memory_gib", "log_every", "save_every"}
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
    settings = config_to_dict(config, unions)
    if (config.out / RESULTS).exists():
        refuse_other(config.out, settings, read_results(config.out).made_by.config)
    elif resume is not None and (config.out / CONFIG).exists():
        refuse_other(config.out, settings, json.loads(read_config(config.out)))
        resume(config.out)
    else:
        start(config)


def refuse_taken(out: Path, *, alone: bool) -> None:
    """Refuse a directory that a single run, or a sweep, cannot use.

    Raises:
        ValueError: a single run's directory exists; a sweep's is a file, or holds a single run.
    """
    if alone and out.exists():
        raise ValueError(f"{out} exists: choose another --out, or resume it with `resume {out}`")
    if not alone and ((out / CONFIG).exists() or out.is_file()):
        raise ValueError(f"{out} is a single run: choose another --out for a sweep")


def refuse_unresumable(path: Path) -> None:
    """Refuse to resume what is not a single run.

    Raises:
        ValueError: a sweep's directory, or one without config.json.
    """
    if not (path / CONFIG).exists() and list(path.glob(f"*/{CONFIG}")):
        raise ValueError(f"{path} is a sweep: repeat its command, which resumes it")
    read_config(path)


def refuse_other(out: Path, settings: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse a run directory whose stored settings differ in what changes its numbers.

    Raises:
        ValueError: with the names of the settings.
    """
    settings = json.loads(json.dumps(settings))  # tuples are lists there
    names = settings.keys() | stored.keys()
    if differ := sorted(k for k in names if k not in _FREE and settings.get(k) != stored.get(k)):
        raise ValueError(f"{out} is a run with other settings ({', '.join(differ)}): choose another --out")


def directory_name(name: str) -> str:
    """Turn a net's name into a directory's: its end as far as files allow, and a hash that tells it apart."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[-_READABLE:].strip("-")
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def refuse_twice(values: Sequence[object], flag: str) -> None:
    """Refuse a value that is passed twice: it would be one run, and count as two.

    Raises:
        ValueError: with the value.
    """
    if twice := [str(value) for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{flag} names {twice[0]} twice: name each once")


# What det_transfer still uses; it goes when det_transfer has the life cycle of `finetune`.
FINGERPRINTS = "fingerprints.json"
once = run_or_resume


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
    like = config.like or other_than_bare(config.checkpoint)
    cells = []
    for checkpoint, seed in product(config.checkpoint, config.seeds):
        cell = replace(  # type: ignore[type-var]  # no protocol says that it is a dataclass
            config, checkpoint=(checkpoint,), seeds=(seed,), like=like if checkpoint in BARE else None,
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


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, sample standard deviation of fractions, in percent."""
    apart = f" +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    mean = round(100 * statistics.mean(values), 1) + 0.0  # no minus before a zero
    return f"{mean:.1f}{apart}"
