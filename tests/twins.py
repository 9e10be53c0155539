"""Runs that must give equal results: in processes that round alike, compared bit by bit."""

from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor


def in_a_process(call: Callable[[], object]) -> BaseProcess:
    """Start a function in a forked process with one thread, so that it rounds like other such processes."""

    def alone() -> None:
        torch.set_num_threads(1)
        call()

    process = get_context("fork").Process(target=alone)
    process.start()
    return process


def assert_bit_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Assert equal names and bit-equal tensors."""
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
