"""How every command ends."""

from collections.abc import Callable

import pytest

from stillroom.backbone import CheckpointError
from stillroom.backbone.command import report_errors


def ending(error: BaseException | None) -> Callable[[], None]:
    def main() -> None:
        print("working")
        if error is not None:
            raise error

    return report_errors(main)


@pytest.mark.parametrize("error", [ValueError("size is 0"), CheckpointError("size is 0")])
def test_bad_input_is_one_sentence_on_stderr_and_exit_code_2(
    error: ValueError, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        ending(error)()
    assert exited.value.code == 2
    assert capsys.readouterr() == ("working\n", "error: size is 0\n")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b: Permission denied; no file is half-written"),
        (OSError(28, "No space left on device"), "No space left on device; no file is half-written"),
        (OSError("cannot seek"), "cannot seek; no file is half-written"),
    ],
)
def test_what_the_system_refuses_is_one_sentence_too(
    error: OSError, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        ending(error)()
    assert exited.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_an_interrupt_is_one_word_and_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        ending(KeyboardInterrupt())()
    assert exited.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(AssertionError, match="cannot be"):
        ending(AssertionError("cannot be"))()


def test_a_good_end_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(None)() is None
    assert capsys.readouterr() == ("working\n", "")
