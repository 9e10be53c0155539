"""Commands as people type them."""

import sys
from collections.abc import Callable

import jaxtyping
import pytest


def run_main(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Call an entry point with the words behind its name."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # tyro.MISSING stands for flags of all types
    monkeypatch.setattr(sys, "argv", ["stillroom", *words])
    main()
