"""Settings that every fine-tuning run has, and the single runs of a sweep. Imports no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import arg  # names of flags

from stillroom.backbone.checks import at_least
from stillroom.backbone.flags import DeviceName, ExecutorName, IfExists, Workers
from stillroom.backbone.names import KEYWORDS, refuse_missing_checkpoint
from stillroom.runs.executor import check_executor
from stillroom.runs.sweep import directory_name, refuse_taken, refuse_twice


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """Fine-tune a backbone; several checkpoints or seeds make a sweep."""

    checkpoint: Annotated[tuple[str, ...], arg(metavar="DIR|NAME [DIR|NAME ...]")]
    """Initial weights: checkpoint directory, a name with its pretrained weights, random:NAME, random or pretrained."""
    out: Path
    """Run directory to create. A sweep creates one in it for each run, and keeps those that are finished."""
    like: str | None = None
    """Checkpoint or name whose net and input `random` and `pretrained` take. None: the first other checkpoint."""
    batch_size: int = 16
    """Images per step, over all processes."""
    amp: Literal["none", "bf16"] = "none"
    """bf16: forward passes in bfloat16 autocast."""
    seeds: Annotated[tuple[int, ...], arg(aliases=("--seed",))] = (0,)
    """Seeds of random weights and of everything that is drawn: the order of the images, their augmentations."""
    device: DeviceName = "auto"
    """auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    workers: Workers = "auto"
    """Processes that decode images, for each training process; 0: that process does. auto: one for each of its cores,
    on a machine without a GPU one less."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl, or of MMEngine's log."""
    save_every: int | None = None
    """Steps between two states to resume from, beside those by the clock; None: by the clock alone."""
    save_minutes: float = 10.0
    """Minutes between two states to resume from; 0: by steps alone. The last two states are kept."""
    if_exists: IfExists = "refuse"
    """refuse: OUT must not exist. resume: a run in it is resumed, or kept if it is finished; start everything that
    nobody watches this way, so that the same command goes on after a restart."""
    executor: ExecutorName = "local"
    """local: the runs of a sweep one after the other, here. submitit: each as a job, under SLURM where there is one."""
    executor_options: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE [NAME=VALUE ...]")] = ()
    """Parameters of the jobs, submitit's: timeout_min=600 slurm_partition=gpu gpus_per_node=1 cpus_per_task=8."""
    data_licence: str | None = None
    """Licence of the images. A restricted one goes into the checkpoint's manifest."""

    @property
    def seed(self) -> int:
        """The seed of a single run."""
        (seed,) = self.seeds
        return seed

    @property
    def name(self) -> str:
        """The initial weights of a single run, as `--checkpoint` names them."""
        (name,) = self.checkpoint
        return name


C = TypeVar("C", bound=FineTuneConfig)
Axes = Mapping[str, Callable[[Any], str]]
"""The fields of several values that make a sweep, and how a value reads in the name of a run's directory."""


NETS_AND_SEEDS: Axes = {"checkpoint": directory_name, "seeds": "seed{}".format}


def split(config: C, axes: Axes = NETS_AND_SEEDS) -> list[C]:
    """List the single runs: the config itself, or one for each combination, in directories of their own.

    Args:
        config: of one run, or of a sweep.
        axes: the fields that are combined; one whose default is empty may be empty.

    Raises:
        ValueError: nothing to combine, or a value twice.
    """
    optional = {field.name for field in fields(config) if field.default == ()}
    for name in axes:
        if not getattr(config, name) and name not in optional:
            raise ValueError(f"--{name} is empty: pass at least one")
        refuse_twice(getattr(config, name), f"--{name}")
    values: list[list[tuple[Any, ...]]] = [[(value,) for value in getattr(config, name)] or [()] for name in axes]
    if all(len(choices) == 1 for choices in values):
        return [config]
    like = config.like or next((name for name in config.checkpoint if name not in KEYWORDS), None)
    runs = []
    for combination in product(*values):
        chosen: dict[str, Any] = dict(zip(axes, combination, strict=True))
        directory = "-".join(axes[name](value) for name, single in chosen.items() for value in single)
        (net,) = chosen["checkpoint"]
        runs.append(replace(config, **chosen, out=config.out / directory, like=like if net in KEYWORDS else None))
    return runs


def check_shared(config: FineTuneConfig) -> None:
    """Refuse, by a ValueError, shared settings that cannot work."""
    at_least(config, 1, "batch_size", "log_every", "save_every")
    at_least(config, 0, "workers", "seeds", "save_minutes")
    check_executor(config.executor, config.executor_options)


def refuse_paths(config: FineTuneConfig, *, alone: bool) -> None:
    """Refuse, by a ValueError, a run whose directory is taken or whose checkpoints do not exist; see `refuse_taken`."""
    refuse_taken(config.out, alone=alone, if_exists=config.if_exists)
    for name in (*config.checkpoint, *filter(None, [config.like])):
        refuse_missing_checkpoint(name)
