"""What makes a run of MMEngine repeatable: images, views and dropout depend on (seed, place in the run) alone.

MMEngine goes on with its sampler where it stood, but neither with the random state of augmentations nor of the net.
"""

import itertools
import math
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from mmseg.registry import DATA_SAMPLERS, DATASETS, HOOKS

from stillroom.backbone.run import DivergedError, mix_seed, seed_everything

SECONDS = "stillroom_seconds"
"""Of training, over all lives of a run, in MMEngine's message hub."""


@DATA_SAMPLERS.register_module()
class SeededSampler(InfiniteSampler):
    """MMEngine's endless sampler whose keys say the draw too: place in the stream x size + index.

    The stream of all processes is the same, each takes every world-size-th draw of it.
    """

    def _indices_of_rank(self) -> Iterator[int]:
        keys = (place * self.size + index for place, index in enumerate(self._infinite_indices()))
        yield from itertools.islice(keys, self.rank, None, self.world_size)


@DATASETS.register_module()
class SeededDataset:
    """A data set whose augmentations are seeded by (seed, draw, index), read from the keys of `SeededSampler`.

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
        """What the data set knows of an image."""
        return self.dataset.get_data_info(index)

    def __getitem__(self, key: int) -> Any:
        return self.dataset[self.seed_for(key)]

    def seed_for(self, key: int) -> int:
        """Seed what augmentations draw by (seed, draw, index); the index."""
        place, index = divmod(key, len(self.dataset))
        seed = mix_seed(self.seed, place, index)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # the CPU's alone: seeding absent GPUs takes longer than all this
        return index


@HOOKS.register_module()
class SeededSteps(Hook):
    """Seed what the net draws, such as dropout, by (seed, step, process) before each step; and count the seconds.

    Args:
        seed: of the run.
    """

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train(self, runner: Runner) -> None:
        """The clock begins."""
        self.marked = time.perf_counter()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """As it says."""
        seed_everything(self.seed, batch_idx, runner.rank)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """The clock goes on; MMEngine keeps it with its states."""
        now = time.perf_counter()
        runner.message_hub.update_info(SECONDS, runner.message_hub.get_info(SECONDS, 0.0) + now - self.marked)
        self.marked = now


@HOOKS.register_module()
class StopDiverged(Hook):
    """Stop when the loss or a weight is not finite, before a state with it is written.

    Args:
        every: steps between two looks, and at every state that is saved.
        save_every: steps between two states.
    """

    priority = "VERY_HIGH"

    def __init__(self, every: int, save_every: int) -> None:
        self.every, self.save_every = every, save_every

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Read the loss back, and the weights where a state is due.

        Raises:
            DivergedError: with the step.
        """
        step = batch_idx + 1
        if step % self.every and step % self.save_every and step != runner.max_iters:
            return
        loss = float((outputs or {})["loss"].detach())
        due = step % self.save_every == 0 or step == runner.max_iters
        whole = not due or all(parameter.isfinite().all() for parameter in runner.model.parameters())
        if not math.isfinite(loss) or not whole:
            found = find_latest_checkpoint(runner.work_dir)
            kept = "the last good state is kept" if found else "no state had been saved yet"
            what = f"the loss is {loss}" if whole else "weights are not finite"
            raise DivergedError(f"{what} at step {step}: lower --lr; {kept}")
