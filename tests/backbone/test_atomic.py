"""Files are whole or not there."""

import os
import threading
from pathlib import Path

import pytest

from stillroom.backbone.atomic import refuse_existing, replace_directory, write_file


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_directory_appears_when_the_block_ends(tmp_path: Path) -> None:
    with replace_directory(tmp_path / "deep" / "out") as aside:
        (aside / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
        assert aside.parent == tmp_path / "deep"  # a rename, never a copy to another disk
    assert (tmp_path / "deep" / "out" / "a").read_text() == "1"
    assert names(tmp_path / "deep") == ["out"]


def test_an_old_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "old").write_text("")
    with replace_directory(tmp_path / "out") as aside:
        (aside / "new").write_text("")
        assert names(tmp_path / "out") == ["old", "sub"]
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existed", [False, True])
def test_an_exception_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, error: type[BaseException], existed: bool
) -> None:
    if existed:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").write_text("kept")

    def write() -> None:
        with replace_directory(tmp_path / "out") as aside:
            (aside / "half").write_text("")
            raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        write()
    assert names(tmp_path) == (["out"] if existed else [])
    if existed:
        assert (tmp_path / "out" / "old").read_text() == "kept"


@pytest.mark.parametrize(("content", "expected"), [("grün\n", "grün\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_a_file_holds_what_was_written(tmp_path: Path, content: str | bytes, expected: bytes) -> None:
    write_file(tmp_path / "deep" / "f", "before")
    write_file(tmp_path / "deep" / "f", content)
    assert (tmp_path / "deep" / "f").read_bytes() == expected
    assert names(tmp_path / "deep") == ["f"]


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "f", "content")
    assert names(tmp_path) == ["f"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    contents = [str(i) * 200_000 for i in range(2)]
    write_file(file, contents[0])
    seen: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(30):
        write_file(file, contents[i % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)


def test_a_file_keeps_the_default_permissions(tmp_path: Path) -> None:
    write_file(tmp_path / "f", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_output_that_could_not_be_created_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    refuse_existing(tmp_path / "new" / "deep" / "out")
    with pytest.raises(ValueError, match=r"file/a/out cannot be created: .*/file is not a folder that can be wr"):
        refuse_existing(tmp_path / "file" / "a" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"out cannot be created: .* written to"):
        refuse_existing(tmp_path / "out")
