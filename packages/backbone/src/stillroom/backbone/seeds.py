"""Seeds of random generators."""

import random

import numpy as np
import torch


def mix_seed(*numbers: int) -> int:
    """One 63-bit seed from several whole numbers, such as (seed, epoch, index); neighbours give unrelated seeds."""
    entropy = (len(numbers), *numbers)  # the length, because NumPy pads with zeros: (1) would equal (1, 0)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_everything(*numbers: int) -> None:
    """Seed torch, NumPy and Python from whole numbers, such as (seed, step, rank)."""
    seed = mix_seed(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
