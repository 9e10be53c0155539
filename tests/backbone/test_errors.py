from pathlib import Path

import pytest
import torch
from PIL import ImageFile

from stillroom.backbone import ImageFiles
from stillroom.backbone.errors import keeps_traceback, raised_by_us
from stillroom.backbone.image_files import read_unlabelled
from stillroom.backbone.images import load_image


def test_a_bug_of_ours_and_a_lack_of_memory_keep_their_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for call in (
        lambda: load_image(tmp_path / "a.png"),  # our assert
        lambda: ImageFiles(tmp_path, (tmp_path,), (0,)).subset([1]),  # IndexError in our frame
        lambda: torch.zeros(1 << 50),
    ):
        with pytest.raises((AssertionError, IndexError, RuntimeError)) as caught:
            call()
        assert keeps_traceback(caught.value)


def test_an_error_of_a_users_program_and_a_sentence_of_ours_do_not(tmp_path: Path) -> None:
    for call in (
        lambda: {}["absent"],
        lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
        lambda: read_unlabelled(tmp_path / "absent"),
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
