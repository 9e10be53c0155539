"""Runs that must end alike: done in processes that round alike, compared to the bit."""

from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor


def in_a_process(call: Callable[[], object]) -> BaseProcess:
    """Begin something in a forked process, whose one thread rounds as those of the others do."""

    def alone() -> None:
        torch.set_num_threads(1)
        call()

    process = get_context("fork").Process(target=alone)
    process.start()
    return process


def assert_bit_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """The same names, and the same bits."""
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
