"""The order of the images in an epoch, without an array of them: a bijection of 0 to n - 1 keyed by (seed, epoch)."""

from dataclasses import dataclass
from functools import cached_property
from math import isqrt

import numpy as np
from jaxtyping import Int

_ROUNDS = 12
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class KeyedOrder:
    """A pseudo-random permutation of 0 to n - 1 in O(1) memory: any part of it is computed alone.

    A Feistel network adds to one half of a number a hash of the other half, in turns. The halves are the quotient and
    the remainder by about the root of n, so that their grid has fewer than 2 isqrt(n) + 2 places beyond n - 1; a number
    that lands there is permuted again until it does not.

    Args:
        num_images: n.
        key: whole numbers, such as (seed, epoch).

    Reference: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (generalised Feistel, cycle
    walking); the hash is the finaliser of SplitMix64 (Steele et al., OOPSLA 2014).
    """

    num_images: int
    key: tuple[int, ...]

    @cached_property
    def _round_keys(self) -> np.ndarray:
        return np.random.SeedSequence((len(self.key), *self.key)).generate_state(_ROUNDS, np.uint64)

    def take(self, first: int, count: int) -> Int[np.ndarray, " count"]:
        """The images at `count` places of the order from `first` on."""
        images = self._permute(np.arange(first, first + count, dtype=np.uint64))
        while (outside := images >= self.num_images).any():
            images[outside] = self._permute(images[outside])
        return images.astype(np.int64)

    def _permute(self, numbers: np.ndarray) -> np.ndarray:
        """Permute numbers of the grid, which holds all of 0 to n - 1."""
        columns = np.uint64(isqrt(max(0, self.num_images - 1)) + 1)
        rows = np.uint64(-(-self.num_images // int(columns)))
        left, right = np.divmod(numbers, columns)
        for turn, key in enumerate(self._round_keys):
            if turn % 2:
                right = (right + _hash(left, key) % columns) % columns
            else:
                left = (left + _hash(right, key) % rows) % rows
        return left * columns + right


def _hash(numbers: np.ndarray, key: np.uint64) -> np.ndarray:
    mixed = numbers + key
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * multiplier
    return mixed ^ (mixed >> np.uint64(31))
