"""The allowed values of flags that several commands share."""

from typing import Literal

DeviceName = Literal["auto", "cpu", "cuda", "mps"]

OnBroken = Literal["refuse", "skip"]
"""An image that cannot be decoded stops the run with its name (`refuse`), or is skipped, named and counted."""

IfExists = Literal["refuse", "resume"]
"""A run directory that exists is refused, or the run in it is kept if it is finished and resumed if it is not."""

ExecutorName = Literal["local", "submitit"]
"""Where the runs of a sweep are done: one after the other in this process, or each as a job of submitit."""

Workers = int | Literal["auto"]
"""Processes that decode images; see `stillroom.runs.hardware.choose_workers` for `auto`."""

Amp = Literal["auto", "none", "bf16", "fp16"]
"""Number format of forward passes; see `stillroom.runs.hardware.choose_amp` for `auto`."""
