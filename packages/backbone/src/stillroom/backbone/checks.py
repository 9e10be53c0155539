"""Checks of numbers that people set, each with one sentence that names the flag."""

import math
from collections.abc import Callable
from typing import Any, Literal


def at_least(config: Any, low: float | int, *names: str, prefix: str = "") -> None:
    """Refuse fields below `low`, and numbers that are not finite.

    Args:
        config: holds the fields; of a tuple every element is checked, and `auto` is allowed.
        low: the smallest allowed value.
        names: of the fields.
        prefix: of the flags, such as `monitor.` for a nested config.

    Raises:
        ValueError: with the first field that is refused.
    """
    _check(config, names, prefix, lambda x: low <= x < math.inf, f"be at least {low:g}")


def above(config: Any, low: float | int, *names: str, prefix: str = "") -> None:
    """Refuse fields that are not above `low`, and numbers that are not finite; arguments as in `at_least`."""
    _check(config, names, prefix, lambda x: low < x < math.inf, f"be above {low:g}")


def within(
    config: Any,
    low: float | int,
    high: float | int,
    *names: str,
    ends: Literal["[]", "[)", "(]", "()"] = "[]",
    prefix: str = "",
) -> None:
    """Refuse fields outside an interval; arguments as in `at_least`.

    Args:
        low, high: the ends of the interval.
        ends: square brackets include an end, round ones do not.
    """

    def inside(x: float | int) -> bool:
        return (low < x or (ends[0] == "[" and x == low)) and (x < high or (ends[1] == "]" and x == high))

    _check(config, names, prefix, inside, f"lie in {ends[0]}{low:g}, {high:g}{ends[1]}")


def flag(name: str, prefix: str = "") -> str:
    """The flag of a config's field: `batch_size` is `--batch-size`."""
    return f"--{prefix}{name.replace('_', '-')}"


def _check(config: Any, names: tuple[str, ...], prefix: str, allowed: Callable[[float | int], bool], rule: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is None or value == "auto":  # not set, or chosen by the run
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(map(allowed, numbers)):
            state = f"holds {list(value)}" if isinstance(value, tuple) else f"is {value}"
            finite = "" if all(map(math.isfinite, numbers)) else ", and finite"
            raise ValueError(f"{flag(name, prefix)} {state}: it must {rule}{finite}")
