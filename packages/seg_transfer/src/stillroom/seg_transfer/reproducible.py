"""Make a run of MMEngine reproducible: images, augmentations and dropout depend on the seed and the step alone.

MMEngine resumes its sampler, but neither the random state of augmentations nor that of the net.
"""

import itertools
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import barrier
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner, find_latest_checkpoint
from mmseg.registry import DATA_SAMPLERS, DATASETS, HOOKS

from stillroom.backbone.seeds import mix_seed, seed_everything
from stillroom.backbone.stopping import Stopped
from stillroom.runs.run import DivergedError
from stillroom.runs.saving import SaveClock

SECONDS = "stillroom_seconds"
"""Key in MMEngine's message hub: seconds of training, those before the last resume included."""


# The second names are those before 0.3, which the config.py of an old run uses.
@DATA_SAMPLERS.register_module(name=["SeededSampler", "SteadySampler"])
class SeededSampler(InfiniteSampler):
    """MMEngine's endless sampler, whose keys encode the draw too: number of the draw x size + index.

    All processes share one stream of draws; each takes every world-size-th of them.
    """

    def _indices_of_rank(self) -> Iterator[int]:
        keys = (draw * self.size + index for draw, index in enumerate(self._infinite_indices()))
        yield from itertools.islice(keys, self.rank, None, self.world_size)


@DATASETS.register_module(name=["SeededDataset", "SteadyDataset"])
class SeededDataset:
    """A data set whose augmentations are seeded by (seed, draw, index), from the keys of `SeededSampler`.

    Args:
        dataset: config of the data set.
        seed: of the run.
    """

    def __init__(self, dataset: dict[str, Any], seed: int) -> None:
        self.dataset = DATASETS.build(dataset)
        self.metainfo = self.dataset.metainfo
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The data set's information on an image."""
        return self.dataset.get_data_info(index)

    def __getitem__(self, key: int) -> Any:
        return self.dataset[self.seed_for(key)]

    def seed_for(self, key: int) -> int:
        """Seed the augmentations of a draw by (seed, draw, index), and return the index."""
        draw, index = divmod(key, len(self.dataset))
        seed = mix_seed(self.seed, draw, index)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # the CPU's only: seeding absent GPUs takes longer than the rest
        return index


@HOOKS.register_module(name=["SeededSteps", "SteadySteps"])
class SeededSteps(Hook):
    """Seed dropout and the like by (seed, step, process) before each step, and measure the seconds of training.

    Args:
        seed: of the run.
    """

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train(self, runner: Runner) -> None:
        """Start the clock."""
        self.marked = time.perf_counter()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the step."""
        seed_everything(self.seed, batch_idx, runner.rank)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Add the step's seconds; MMEngine saves them with its states."""
        now = time.perf_counter()
        runner.message_hub.update_info(SECONDS, runner.message_hub.get_info(SECONDS, 0.0) + now - self.marked)
        self.marked = now


@HOOKS.register_module()
class StopDiverged(Hook):
    """Stop when the loss or a weight is NaN or infinite, before such a state is saved.

    Args:
        every: steps between two checks of the loss; it is checked before every saved state too.
        save_every: steps between two saved states; -1: none by steps.
    """

    priority = "VERY_HIGH"

    def __init__(self, every: int, save_every: int) -> None:
        self.every, self.save_every = every, save_every

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Read the loss back, and check the weights before a state is saved.

        Raises:
            DivergedError: with the step.
        """
        step = batch_idx + 1
        saves = (self.save_every > 0 and step % self.save_every == 0) or step == runner.max_iters
        if step % self.every == 0 or saves:
            refuse_diverged(runner, step, outputs, saves=saves)


def refuse_diverged(runner: Runner, step: int, outputs: dict[str, Any] | None, *, saves: bool) -> None:
    """Stop a run whose loss is NaN or infinite, or, before a state is saved, a weight.

    Raises:
        DivergedError: with the step.
    """
    loss = float((outputs or {})["loss"].detach())
    weights_finite = not saves or all(parameter.isfinite().all() for parameter in runner.model.parameters())
    if not math.isfinite(loss) or not weights_finite:
        state = find_latest_checkpoint(runner.work_dir)
        kept = "the last good state is kept" if state else "no state had been saved yet"
        reason = f"the loss is {loss}" if weights_finite else "weights are not finite"
        raise DivergedError(f"{reason} at step {step}: lower --lr; {kept}")


@HOOKS.register_module()
class SaveByClock(Hook):
    """Save a state by the clock, and after SIGTERM or SIGUSR1, which then end the run; see `SaveClock`.

    MMEngine's own CheckpointHook writes it, beside those by steps.

    Args:
        minutes: minutes between two states; 0: by steps alone.
    """

    priority = "LOWEST"  # after CheckpointHook

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes

    def before_train(self, runner: Runner) -> None:
        """Start the clock."""
        self.saver = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        self.clock = SaveClock(runner.rank, runner.world_size)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Save a state if one is due.

        Raises:
            DivergedError: instead of saving weights or after a loss that are NaN or infinite.
            Stopped: a signal asked for it.
        """
        if self.saver is None or self.saver.by_epoch:  # a user's config by epochs, which resumes from whole ones
            return
        if not self.clock.is_due(batch_idx + 1, None, self.minutes):
            return
        refuse_diverged(runner, batch_idx + 1, outputs, saves=True)
        self.saver._save_checkpoint(runner)
        if self.clock.stop is not None:
            barrier()
            raise Stopped.at(self.clock.stop, batch_idx + 1, Path(runner.work_dir))

    def after_train(self, runner: Runner) -> None:
        """Stop the clock."""
        self.clock.close()
