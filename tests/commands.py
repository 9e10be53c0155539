"""Commands as users type them."""

import sys
from collections.abc import Callable

import jaxtyping
import pytest


def run_main(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Call an entry point with the words of a command line."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # presets hold tyro.MISSING for flags of all types
    monkeypatch.setattr(sys, "argv", ["stillroom", *words])
    main()
