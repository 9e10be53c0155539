"""Checks of numbers that people set."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from stillroom.backbone.checks import above, at_least, within


@dataclass(frozen=True)
class Settings:
    batch_size: Any = 1
    rates: tuple[float, ...] = (0.1, 0.2)


def finite(value: float) -> str:
    """What is said in addition of a number that is not finite."""
    return "" if math.isfinite(value) else ", and finite"


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_number_below_the_bound_or_not_finite_is_refused_by_its_flag(value: float) -> None:
    with pytest.raises(ValueError, match=rf"--train\.batch-size is {value}: it must be at least 1{finite(value)}$"):
        at_least(Settings(batch_size=value), 1, "batch_size", prefix="train.")


def test_the_bound_itself_passes_and_every_element_of_a_tuple_is_checked() -> None:
    at_least(Settings(), 1, "batch_size")
    with pytest.raises(ValueError, match=r"--rates holds \[0.1, 0.2\]: it must be at least 0.15"):
        at_least(Settings(), 0.15, "rates")


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_number_that_must_be_above_its_bound_is_refused_in_words(value: float) -> None:
    with pytest.raises(ValueError, match=rf"--batch-size is {value}: it must be above 0{finite(value)}$"):
        above(Settings(batch_size=value), 0, "batch_size")
    above(Settings(batch_size=1e-9), 0, "batch_size", "rates")


@pytest.mark.parametrize(
    ("ends", "refused"), [("[]", ""), ("[)", "1"), ("(]", "0"), ("()", "01")], ids=["closed", "[)", "(]", "open"]
)
def test_the_ends_of_an_interval_belong_to_it_as_its_brackets_say(ends: Any, refused: str) -> None:
    for value in (0, 1):
        if str(value) in refused:
            with pytest.raises(ValueError, match=rf"--batch-size is {value}: it must lie in "):
                within(Settings(batch_size=value), 0, 1, "batch_size", ends=ends)
        else:
            within(Settings(batch_size=value), 0, 1, "batch_size", ends=ends)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="it must lie in"):
            within(Settings(batch_size=value), 0, 1, "batch_size", ends=ends)
