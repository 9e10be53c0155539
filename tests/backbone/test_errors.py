from pathlib import Path

import pytest
import torch

from stillroom.backbone.errors import keeps_traceback, raised_by_us
from stillroom.backbone.manifest import read_manifest


def test_a_bug_of_ours_and_a_lack_of_memory_keep_their_traceback() -> None:
    ours = {"__name__": "stillroom.backbone.module"}
    for call in (
        lambda: exec("assert 1 > 2", ours),
        lambda: exec("()[1]", ours),
        lambda: torch.zeros(1 << 50),
    ):
        with pytest.raises((AssertionError, IndexError, RuntimeError)) as caught:
            call()
        assert keeps_traceback(caught.value)


def test_an_error_of_a_users_program_and_a_sentence_of_ours_do_not(tmp_path: Path) -> None:
    for call in (
        lambda: {}["absent"],
        lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
        lambda: read_manifest(tmp_path / "absent" / "manifest.json"),
        lambda: exec("assert 1 > 2", {}),
    ):
        with pytest.raises((KeyError, RuntimeError, ValueError, AssertionError)) as caught:
            call()
        assert not keeps_traceback(caught.value)


def test_an_error_of_our_code_is_for_people_where_its_source_is_absent(tmp_path: Path) -> None:
    for name, ours in (("stillroom.absent", True), ("absent", False)):
        code = compile("raise ValueError('a sentence')", str(tmp_path / "absent.py"), "exec")
        with pytest.raises(ValueError, match="a sentence") as caught:
            exec(code, {"__name__": name})
        assert raised_by_us(caught.value) is ours
