"""Sources of encoded images: their names, sizes and bytes, and listings that are kept and mapped."""

import hashlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stillroom.images import Source, lists, read_labelled, read_unlabelled
from stillroom.images import folder as folders
from stillroom.images.listing import Listing, ListingWriter
from stillroom.images.source import FileReader, from_paths


def put(file: Path, content: bytes = b"pixels") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


NAMES = ("a/b/1.png", "a.png", "a/0.png", "a b/2.png", "a-b.png", "z/é.png", "Z/1.png", "é/1.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(NAMES):
        put(tmp_path / "images" / name, b"x" * index)
    return tmp_path / "images"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every listing, however small."""
    monkeypatch.setattr(folders, "INDEXED", 1)
    monkeypatch.setattr(lists, "LARGE_LIST", 0)


def sha256(lines: Iterator[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")).hexdigest()


def published_fingerprint(source: Source) -> str:
    """As version 0.1 computed it, over a tuple of paths."""
    return sha256(f"{path.relative_to(source.root).as_posix()}\0{path.stat().st_size}" for path in source.paths)


def published_stamp(source: Source) -> str:
    stats = [(path.resolve(), path.stat()) for path in source.paths]
    lines = [f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}" for path, stat in stats]
    return sha256(iter([*lines, source.content]))


def write_list(folder: Path, file: Path) -> Path:
    names = [os.path.relpath(path, file.parent) for path in read_unlabelled(folder).paths]
    file.write_text("# all\n\n" + "\n".join(names) + "\n", encoding="utf-8")
    return file


# --- names


@settings(max_examples=50, deadline=None)
@given(names=st.lists(st.binary(max_size=30), max_size=40), data=st.data())
def test_a_listing_gives_back_its_names_in_any_order(names: list[bytes], data: st.DataObject) -> None:
    writer = ListingWriter(columns=("sizes",))
    for number, name in enumerate(names):
        writer.add(name, number)
    listing = writer.finish()
    rows = data.draw(st.lists(st.integers(0, len(names) - 1))) if names else []
    assert [*listing.names()] == names and [*listing.names(np.array(rows, int))] == [names[row] for row in rows]
    assert listing.columns["sizes"].tolist() == [*range(len(names))]


def test_the_order_of_a_folder_is_that_of_its_sorted_paths(folder: Path) -> None:
    source = read_unlabelled(folder)
    assert [*source.paths] == sorted(folder / name for name in NAMES)
    assert source.paths[1:3] == tuple([*source.paths][1:3]) and source.paths[-1] == [*source.paths][-1]
    with pytest.raises(IndexError):
        source.paths[len(NAMES)]


@pytest.mark.parametrize("how", ["folder", "list", "link", "subset"])
def test_fingerprints_and_stamps_are_those_of_version_0_1(folder: Path, tmp_path: Path, how: str) -> None:
    (folder / "link.png").symlink_to(put(tmp_path / "elsewhere" / "x.png", b"far"))
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    source = read_unlabelled(folder if how != "list" else write_list(folder, tmp_path / "list.txt"))
    if how == "subset":
        source = source.subset([5, 0, 2])
    assert source.fingerprint == published_fingerprint(source) and source.stamp == published_stamp(source)


def test_paths_of_a_list_are_taken_as_pathlib_takes_them(folder: Path, tmp_path: Path) -> None:
    lines = ["./images/a.png", "images//a/0.png", "images/./Z/1.png", f"{tmp_path}/images/a/b/../0.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    source = read_unlabelled(tmp_path / "list.txt")
    assert [*source.paths] == [tmp_path / line for line in lines] and source.root == folder
    assert source.fingerprint == published_fingerprint(source)


def test_an_image_is_read_named_and_labelled_by_its_index(folder: Path) -> None:
    for name in ("a.png", "a-b.png"):
        (folder / name).unlink()
    source = read_labelled(folder)
    index = source.classes.index("z")
    where = list(source.labels or ()).index(index)
    assert (source.name(where), source.label(where)) == ("z/é.png", index)
    assert source.read(where) == (folder / "z" / "é.png").read_bytes()
    assert source.where(where) == str(folder / "z" / "é.png")
    assert read_unlabelled(folder).label(0) is None


def test_a_list_is_labelled_by_the_folders_of_its_names_as_the_folder_is(folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a-b.png"):
        (folder / name).unlink()
    one, two = read_labelled(folder), read_labelled(write_list(folder, tmp_path / "list.txt"))
    assert (one.labels, one.classes, one.fingerprint) == (two.labels, two.classes, two.fingerprint)
    backwards = one.classes[::-1]
    one, two = read_labelled(folder, backwards), read_labelled(tmp_path / "list.txt", backwards)
    assert one.classes == backwards and [*one.paths] == [*two.paths] and one.labels == two.labels
    assert list(one.labels or ()) == sorted(one.labels or ())


def test_a_list_without_class_folders_is_refused_where_labels_are_needed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("images/a.png\nimages/a-b.png\n")
    with pytest.raises(ValueError, match="images holds no class folders: expected images/<class>/<image>"):
        read_labelled(tmp_path / "list.txt")


# --- listings that are kept


@pytest.mark.parametrize("how", ["folder", "list"])
def test_a_kept_listing_equals_one_in_memory_and_is_mapped_the_next_time(
    folder: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder if how == "folder" else write_list(folder, tmp_path / "list.txt")
    live = read_unlabelled(place)
    assert live.listing.folder is None
    monkeypatch.setattr(folders, "INDEXED", 1)
    monkeypatch.setattr(lists, "LARGE_LIST", 0)
    made = read_unlabelled(place)
    monkeypatch.setattr(folders, "_Walk", None)  # neither is called again
    monkeypatch.setattr(lists, "_write", None)
    mapped = read_unlabelled(place)
    for source in (made, mapped):
        assert source.listing.folder is not None and [*source.paths] == [*live.paths]
        assert (source.fingerprint, source.stamp) == (live.fingerprint, made.stamp)
        assert source.subset([3, 1]).fingerprint == live.subset([3, 1]).fingerprint
        assert source.read(2) == live.read(2)


@pytest.mark.parametrize("change", ["new image", "new folder", "removed", "other size"])
@pytest.mark.usefixtures("kept")
def test_a_folder_that_changed_is_listed_again(folder: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_unlabelled(folder)
    assert before.fingerprint and before.stamp
    match change:
        case "new image":
            put(folder / "a" / "b" / "9.png")
        case "new folder":
            put(folder / "a" / "new" / "9.png")
        case "removed":
            (folder / "z" / "é.png").unlink()
        case _:
            put(folder / "a" / "0.png", b"another size")
    after = read_unlabelled(folder)
    assert after.fingerprint == published_fingerprint(after) != before.fingerprint and after.stamp != before.stamp
    assert f"note: the index of {folder} is older than what it lists: it is made again" in capsys.readouterr().err


@pytest.mark.usefixtures("kept")
def test_a_list_that_changed_is_read_again_and_one_whose_files_are_gone_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write_list(folder, tmp_path / "list.txt")
    assert len(read_unlabelled(place)) == len(NAMES)
    place.write_text("images/a.png\nimages/a/0.png\n")
    assert len(read_unlabelled(place)) == 2 and f"the index of {place} is older" in capsys.readouterr().err
    (folder / "a.png").unlink()
    with pytest.raises(ValueError, match=r"list\.txt lists 1 files that do not exist, the first is .*images/a\.png"):
        read_unlabelled(place)


@pytest.mark.parametrize("torn", ["names.bin", "offsets.npy", "sizes.npy", "index.json"])
@pytest.mark.usefixtures("kept")
def test_a_listing_that_a_crash_has_torn_is_made_again(folder: Path, torn: str) -> None:
    kept = read_unlabelled(folder).listing.folder
    assert kept is not None
    (kept / torn).write_bytes((kept / torn).read_bytes()[:-5])
    source = read_unlabelled(folder)
    assert source.fingerprint == published_fingerprint(source) and source.listing.folder == kept


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"x", b"PK\x03\x04x", b"\0" * 40, "other", "folder", "reversed"])
@pytest.mark.parametrize("file", ["names.bin", "offsets.npy", "sizes.npy", "index.json"])
@pytest.mark.usefixtures("kept")
def test_a_damaged_listing_is_made_again_and_called_damaged(
    folder: Path, file: str, damage: bytes | str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = read_unlabelled(folder).listing.folder
    assert kept is not None
    content = (kept / file).read_bytes()
    if damage == "folder":
        (kept / file).unlink()
        (kept / file).mkdir()
    elif damage == "other":
        np.save(kept / "other.npy", np.arange(3))
        (kept / "other.npy").rename(kept / file)
    else:
        (kept / file).write_bytes(content[::-1] if isinstance(damage, str) else damage)
    source = read_unlabelled(folder)
    assert source.fingerprint == published_fingerprint(source) and source.listing.folder == kept
    assert (kept / file).read_bytes() == content and f"the index of {folder} is " in capsys.readouterr().err


@pytest.mark.usefixtures("kept")
def test_a_file_in_the_place_of_a_listing_is_replaced(folder: Path) -> None:
    kept = read_unlabelled(folder).listing.folder
    assert kept is not None
    kept.rename(kept.with_name("away"))
    kept.write_bytes(b"")
    assert len(read_unlabelled(folder)) == len(NAMES)


@pytest.mark.usefixtures("kept")
def test_one_process_makes_a_listing_and_the_others_wait_for_it(
    folder: Path, in_two_processes: Callable[..., list], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, start = folders._Walk.write, torch.multiprocessing.get_context("fork").Barrier(2)
    made = torch.multiprocessing.get_context("fork").Value("i", 0)

    def slow(*words: object) -> Listing:
        with made.get_lock():
            made.value += 1
        time.sleep(0.3)
        return write(*words)

    def read() -> str:
        start.wait()
        return read_unlabelled(folder).fingerprint

    monkeypatch.setattr(folders._Walk, "write", slow)
    one, two = in_two_processes(read)
    assert one == two and made.value == 1


@pytest.mark.usefixtures("kept")
def test_what_a_kept_listing_leaves_out_is_still_counted_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(folder / "notes.md")
    for _ in range(2):
        assert read_unlabelled(folder).left_out == {"not an image": 1}
    assert "1 not an image (notes.md)" in capsys.readouterr().err


@pytest.mark.usefixtures("kept")
def test_a_worker_that_is_not_forked_maps_the_listing_itself(folder: Path) -> None:
    source = read_unlabelled(folder)
    sent = pickle.dumps(source)
    assert b"a/b/1.png" not in sent, "names are not copied"
    again: Source = pickle.loads(sent)  # noqa: S301
    assert [*again.paths] == [*source.paths] and isinstance(again.listing, Listing) and again.read(1) == source.read(1)


@pytest.mark.usefixtures("kept")
def test_where_the_cache_cannot_be_written_the_listing_stays_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "file")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "file"))
    source = read_unlabelled(folder)
    assert source.listing.folder is None and source.fingerprint == published_fingerprint(source)
    assert "cannot be written (Not a directory); the index of the images is not kept" in capsys.readouterr().err


def test_images_may_be_anywhere_where_they_are_given_by_their_paths(tmp_path: Path) -> None:
    first, second = tmp_path / "x" / "a.png", tmp_path / "y" / "b.png"
    for file in (first, second):
        file.parent.mkdir()
        Image.new("RGB", (2, 2)).save(file)
    source = from_paths([second, first])
    assert source.root == tmp_path and isinstance(source.reader, FileReader)
    assert source.paths == (second, first) and source.fingerprint == published_fingerprint(source)
    assert len(from_paths([])) == 0
