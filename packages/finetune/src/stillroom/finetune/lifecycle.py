"""How a fine-tuning run starts, resumes and is kept: one life cycle for every task.

A task package fills in a `Task`; its training loop stays there. The run directory holds what the run began with: the
initial weights and the hashes of its inputs. So nothing but the images has to be there to resume it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.backbone.checkpoint import save_checkpoint
from stillroom.backbone.features import Backbone
from stillroom.backbone.manifest import MANIFEST, Head, read_manifest
from stillroom.backbone.names import checkpoint_method
from stillroom.finetune.config import NETS_AND_SEEDS, Axes, FineTuneConfig, split
from stillroom.finetune.table import TABLE
from stillroom.runs.configs import config_to_json, load_config
from stillroom.runs.executor import JOBS, submit_all
from stillroom.runs.guard import guarded, share
from stillroom.runs.inputs import (
    Input,
    checkpoint_inputs,
    data_inputs,
    record_inputs,
    record_moved,
    refuse_changed_inputs,
)
from stillroom.runs.results import RESULTS, DatasetRecord, read_results
from stillroom.runs.run import Run
from stillroom.runs.run_files import CONFIG, failing_cleanly, read_inputs, to_json
from stillroom.runs.sweep import refuse_taken, refuse_unresumable, run_or_resume

CHECKPOINT = "checkpoint"
"""The name of the initial weights among a run's inputs."""
INITIAL = "initial"
"""The checkpoint of the initial weights, in the run directory."""
FINGERPRINTS = "fingerprints.json"
"""The fingerprints of the data that a run of versions before 0.5 began with, by role."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run begins with; a task adds what its loop needs.

    Args:
        backbone: the initial weights.
        records: the data by role, which must not change while the run lasts.
        inputs: what else must not, by name; see `stillroom.runs.inputs`.
        heads: further initial weights, as `save_checkpoint` takes them.
    """

    backbone: Backbone
    records: Mapping[str, DatasetRecord]
    inputs: Mapping[str, Input] = field(default_factory=dict)
    heads: Mapping[str, tuple[Head, Mapping[str, Tensor]]] = field(default_factory=dict)


C = TypeVar("C", bound=FineTuneConfig)
P = TypeVar("P", bound=Prepared)


@dataclass(frozen=True, kw_only=True)
class Task(Generic[C, P]):
    """The functions that a task package fills in.

    Args:
        package: its distribution, for provenance.
        config: class of its settings.
        check: config, number of processes, whether on the CPU: refuses settings before anything is read.
        read_records: config, process -> the data of a single run as they are now, by role.
        prepare: config, process, directory of the initial weights that a resumed run kept (None: a new run, whose
            weights `--checkpoint` names) -> what the run begins with. It writes nothing.
        train: config, process, what `prepare` returned, whether to resume: trains, evaluates, and writes results.json
            last.
        tabulate: config, finished single runs -> the content of table.json.
        axes: see `split`.
        prepared_axes: those that `prepare` depends on; a sweep tries each combination of them before its first run.
        unions: fields of several variants in the config, for config.json.
        begun: see `failing_cleanly`.
    """

    package: str
    config: type[C]
    check: Callable[[C, int, bool], None]
    read_records: Callable[[C, Run], Mapping[str, DatasetRecord]]
    prepare: Callable[[C, Run, Path | None], P]
    train: Callable[[C, Run, P, bool], None]
    tabulate: Callable[[C, Sequence[C]], Mapping[str, Any]]
    axes: Axes = field(default_factory=lambda: NETS_AND_SEEDS)
    prepared_axes: tuple[str, ...] = ("checkpoint",)
    unions: tuple[Any, ...] = ()
    begun: tuple[str, ...] = ()


def finetune(task: Task[C, P], config: C) -> Path:
    """Do a run or a sweep, and return its directory.

    A sweep's directory gets one run directory for each single run, and table.json. Finished runs are kept, stopped
    ones are resumed. Bad input is a ValueError.
    """
    # 1. Settings and paths, before anything is read.
    run = Run.start(config.device)
    with closed_if_refused(run):
        in_jobs = config.executor == "submitit"
        task.check(config, run.world_size, run.device.type == "cpu" and not in_jobs)  # not where the jobs run
        runs = split(config, task.axes)
        refuse_taken(config.out, alone=runs == [config], if_exists=config.if_exists)
        # 2. What earlier commands left is kept only if it still is what this one would do.
        for single in runs:
            refuse_stale(task, single, run)
        # 3. What cannot work in a later run stops a sweep before its first: every net on all data is read once.
        if runs != [config] and not in_jobs:
            new = (single for single in runs if not (single.out / CONFIG).exists())
            for single in {tuple(getattr(one, name) for name in task.prepared_axes): one for one in new}.values():
                task.prepare(single, run, None)
    # 4. The runs; those of a sweep that another process, here or elsewhere, is at are left to it.
    if in_jobs:
        cells = [replace(one, executor="local", executor_options=(), if_exists="resume") for one in runs]
        jobs = config.out / JOBS if runs != [config] else config.out.with_name(f"{config.out.name}-{JOBS}")
        submit_all({one.out.name: partial(finetune, task, one) for one in cells}, jobs, config.executor_options)
    else:
        share(runs, partial(do_one, task, run=run), run, patient=config.if_exists == "resume")
    # 5. The table.
    if runs != [config] and run.is_main:
        write_file(config.out / TABLE, to_json(task.tabulate(config, runs), indent=2) + "\n")
    run.wait()
    run.close()
    return config.out


def do_one(task: Task[C, P], config: C, run: Run) -> None:
    """Start a single run, resume it with the settings that may change, or keep it."""
    changed = {name: getattr(config, name) for name in ("device", "workers", "log_every", "save_every", "save_minutes")}
    run_or_resume(config, task.unions, partial(start, task, run=run), partial(resume_one, task, run=run, **changed))


def resume(task: Task[C, P], path: Path, places: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """Resume a single run from its last state, unless it is finished, and return its directory.

    On the CPU the weights end equal to the bit to those of a run that was never stopped. Of `changes` (`device`,
    `workers`, `log_every`) None keeps the run's setting. `places` say where its inputs lie now, see `to_places`.
    Inputs that changed since are a ValueError.
    """
    refuse_unresumable(path)
    if not (path / RESULTS).exists():
        config = load_config(path, task.config, task.unions, **changes)
        run = Run.start(config.device)
        with guarded(path, run, patient=config.if_exists == "resume"):
            if not (path / RESULTS).exists():  # else another process has finished it meanwhile
                resume_one(task, path, run=run, places=places, **changes)
        run.close()
    return path


@contextmanager
def closed_if_refused(run: Run) -> Iterator[None]:
    """Leave the process group when settings or data are refused, which every process does alike.

    Not around training: what stops one process there must not make it wait for the others.
    """
    try:
        yield
    except ValueError:
        run.close()
        raise


def start(task: Task[C, P], config: C, run: Run) -> None:
    """Start a single run: keep in its directory what it begins with, then train."""
    with closed_if_refused(run):
        prepared = task.prepare(config, run, None)
    run.wait()  # every process has looked for config.json before the main one writes it
    if run.is_main:
        method, heads = checkpoint_method(config.name), prepared.heads
        with replace_directory(config.out) as out:  # whole, or not there
            save_checkpoint(out / INITIAL, prepared.backbone, method=method, package=task.package, heads=heads)
            weights = Input(f"the weights of {config.name}", initial_sha256(out) or "")
            checkpoint = {**checkpoint_inputs(config.name, CHECKPOINT), CHECKPOINT: weights}
            record_inputs(out, {**data_inputs(prepared.records), **prepared.inputs, **checkpoint})
            write_file(out / CONFIG, config_to_json(config, task.unions))
    run.wait()
    with failing_cleanly(config.out, new=True, begun=task.begun):
        task.train(config, run, prepared, False)


def resume_one(task: Task[C, P], path: Path, run: Run, places: Mapping[str, Any] | None = None, **changes: Any) -> None:
    """Resume a single run in this process; see `resume`."""
    config = load_config(path, task.config, task.unions, places, **changes)
    with closed_if_refused(run):
        task.check(config, run.world_size, run.device.type == "cpu")
        refuse_other_weights(config)
        prepared = task.prepare(config, run, path / INITIAL)
        refuse_changed(path, prepared.records, prepared.inputs)
    if run.is_main:
        record_moved(path, places or {})
    run.wait()
    with failing_cleanly(path, new=False):
        task.train(config, run, prepared, True)


def refuse_stale(task: Task[C, P], config: C, run: Run) -> None:
    """Refuse, by a ValueError, to keep a run whose initial weights or data have changed since."""
    refuse_other_weights(config)
    if (config.out / RESULTS).exists():
        refuse_changed(config.out, task.read_records(config, run))


def refuse_other_weights(config: FineTuneConfig) -> None:
    """Refuse, by a ValueError, a checkpoint that was made anew since the run began; one that is gone is not needed.

    The run's own copy of its initial weights must still have their hash too.
    """
    out = config.out
    initial = initial_sha256(out) if (out / CONFIG).exists() else None
    began = read_inputs(out).get("sha256", {})
    for name, now in checkpoint_inputs(config.name, CHECKPOINT).items():
        if (initial if name == CHECKPOINT else began.get(name)) not in (None, now.sha256):
            raise ValueError(
                f"{now.words} have changed since {out} began: choose another --out, or move {config.name} away "
                f"(`resume` needs only the run's own copy)"
            )
    kept = Input(f"the weights of {out / INITIAL}", initial or "")
    if CHECKPOINT in began:
        refuse_changed_inputs(out, {CHECKPOINT: kept}, began)


def initial_sha256(out: Path) -> str | None:
    """The hash of the backbone that a run began with; None: stopped by a version that kept no initial weights."""
    if (out / INITIAL / MANIFEST).exists():
        return read_manifest(out / INITIAL / MANIFEST).weights.sha256
    return read_results(out).extra["initial_sha256"] if (out / RESULTS).exists() else None


def kept_hashes(out: Path) -> Mapping[str, str] | None:
    """The hashes of the inputs that a run began with, by name; None: only its state has them (cls_transfer 0.3)."""
    if began := read_inputs(out).get("sha256"):
        return began
    if (out / FINGERPRINTS).exists():
        return json.loads((out / FINGERPRINTS).read_text(encoding="utf-8"))
    if (out / RESULTS).exists():  # of a version that did not write them
        return {role: record.fingerprint for role, record in read_results(out).datasets.items()}
    return None


def refuse_changed(
    out: Path,
    records: Mapping[str, DatasetRecord],
    inputs: Mapping[str, Input] | None = None,
    began: Mapping[str, str] | None = None,
) -> None:
    """Refuse, by a ValueError, to keep or resume a run whose inputs differ from those that it began with.

    Args:
        out: the run directory.
        records: the data by role, as they are now.
        inputs: what else the run began with, as it is now.
        began: the hashes that the run began with, by name; None: those kept in its directory, if any.
    """
    began = kept_hashes(out) if began is None else began
    if began is not None:
        refuse_changed_inputs(out, {**data_inputs(records), **(inputs or {})}, began)
