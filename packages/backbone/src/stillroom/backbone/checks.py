"""Checks of numbers that people set, each with one sentence that names the flag."""

import math
from typing import Any, Literal


def at_least(config: Any, low: float | int, *names: str, prefix: str = "") -> None:
    """Refuse fields below `low`, and numbers that are not finite.

    Args:
        config: holds the fields; of a tuple every element is checked.
        low: the smallest allowed value.
        names: of the fields.
        prefix: of the flags, such as `monitor.` for a nested config.

    Raises:
        ValueError: with the first field that is refused.
    """
    for name in names:
        for number in _elements(config, name):
            if not low <= number < math.inf:
                raise ValueError(f"{_state(config, name, prefix)}: it must be at least {low:g}, and finite")


def within(
    config: Any,
    low: float | int,
    high: float | int,
    *names: str,
    ends: Literal["[]", "[)", "(]", "()"] = "[]",
    prefix: str = "",
) -> None:
    """Refuse fields outside an interval.

    Args:
        config: holds the fields; of a tuple every element is checked.
        low, high: the ends of the interval.
        names: of the fields.
        ends: square brackets include an end, round ones do not.
        prefix: of the flags, such as `monitor.` for a nested config.

    Raises:
        ValueError: with the first field that is refused.
    """
    for name in names:
        for number in _elements(config, name):
            above = number > low or (ends[0] == "[" and number == low)
            below = number < high or (ends[1] == "]" and number == high)
            if not (above and below):
                interval = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
                raise ValueError(f"{_state(config, name, prefix)}: it must lie in {interval}")


def flag(name: str, prefix: str = "") -> str:
    """The flag of a config's field: `batch_size` is `--batch-size`."""
    return f"--{prefix}{name.replace('_', '-')}"


def _elements(config: Any, name: str) -> tuple[float | int, ...]:
    value = getattr(config, name)
    return value if isinstance(value, tuple) else (value,)


def _state(config: Any, name: str, prefix: str) -> str:
    value = getattr(config, name)
    shown = f"holds {list(value)}" if isinstance(value, tuple) else f"is {value}"
    return f"{flag(name, prefix)} {shown}"
