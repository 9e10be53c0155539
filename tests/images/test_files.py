"""The walk over a folder: what is an image, what is left out, and how it is said; images in two sets."""

import os
from pathlib import Path

import pytest
from PIL import Image

from stillroom.images import BrokenImageError, read_labelled, read_unlabelled
from stillroom.images.decode import load_image
from stillroom.images.folder import walk
from stillroom.images.formats import image_formats, image_suffixes
from stillroom.images.source import MAX_HASHED, count_shared, from_paths
from stillroom.runs.results import DatasetRecord


def put(file: Path, colour: str = "red", size: tuple[int, int] = (4, 4)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)
    return file


HIDDEN = (
    ".ipynb_checkpoints/1-checkpoint.png",
    ".trash/deep/er/1.png",
    "._1.png",
    "__MACOSX/cat/1.png",
    "@eaDir/1.jpg",
    "$RECYCLE.BIN/1.png",
)


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("below", ["", "cat", "cat/more"])
def test_hidden_files_and_folders_are_left_out_at_every_depth_and_counted(
    tmp_path: Path, name: str, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for image in ("cat/1.png", "cat/more/2.png", "dog/1.png"):
        put(tmp_path / image)
    put(tmp_path / below / name)
    for files in (read_unlabelled(tmp_path), read_labelled(tmp_path)):
        assert [path.relative_to(tmp_path).as_posix() for path in files.paths] == [
            "cat/1.png",
            "cat/more/2.png",
            "dog/1.png",
        ]
        assert files.left_out == {"hidden": 1}
        assert files.subset([0]).record().left_out == {"hidden": 1}
    first = Path(below, Path(name).parts[0])
    assert capsys.readouterr().err == f"left out of {tmp_path}: 1 hidden ({first})\n", "once a command"


def test_every_file_that_is_left_out_is_counted_by_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "data" / "a.png")
    put(tmp_path / "data" / ".old" / "b.png")
    put(tmp_path / "data" / ".old" / "deeper" / "c.png")
    for name in ("notes.txt", "sub/IMG_1.HEIC", "Thumbs.db", ".DS_Store"):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"")
    (tmp_path / "data" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "data" / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "data" / "pipe.png")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "sub")
    expected = {
        "hidden": 3,
        "not an image": 3,
        "broken link, or no regular file": 3,
        "link to a folder already entered": 1,
    }
    files = read_unlabelled(tmp_path / "data")
    assert [path.name for path in files.paths] == ["a.png"] and files.left_out == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"left out of {tmp_path}/data: 3 hidden (.DS_Store), ")
    assert "3 not an image (Thumbs.db)" in line and "1 link to a folder already entered (again)" in line


def test_only_the_main_process_says_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / ".b.png")
    monkeypatch.setenv("RANK", "1")
    assert read_unlabelled(tmp_path).left_out == {"hidden": 1}
    assert capsys.readouterr().err == ""


def test_a_hidden_root_is_read(tmp_path: Path) -> None:
    put(tmp_path / ".cache" / "cifar" / "cat" / "1.png")
    assert len(read_labelled(tmp_path / ".cache" / "cifar")) == 1


def test_links_in_a_circle_end_and_no_folder_is_entered_twice(tmp_path: Path) -> None:
    for name in ("data/a/1.png", "data/b/2.png"):
        put(tmp_path / name)
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b" / "out").symlink_to(tmp_path)
    files = read_unlabelled(tmp_path / "data")
    assert [path.name for path in files.paths] == ["1.png", "2.png"]
    assert files.left_out == {"link to a folder already entered": 2}


def test_a_link_takes_no_image_from_the_class_that_it_leads_to(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        put(tmp_path / name)
    (tmp_path / "a" / "also").symlink_to(tmp_path / "b")
    files = read_labelled(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in files.paths] == ["a/1.png", "b/2.png"]


def test_classes_may_be_links(tmp_path: Path) -> None:
    put(tmp_path / "store" / "x" / "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "store" / "x")
    assert read_labelled(tmp_path / "data").classes == ("cat",)
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "store" / "x")  # cat and dog are one folder
    with pytest.raises(ValueError, match=f"class folder {tmp_path}/data/dog holds no images"):
        read_labelled(tmp_path / "data")


@pytest.mark.parametrize("suffix", ["avif", "jp2", "tga", "pcx", "ico", "dds", "qoi", "sgi", "pnm", "jfif", "apng"])
def test_every_format_that_pillow_decodes_is_an_image(tmp_path: Path, suffix: str) -> None:
    if f".{suffix}" not in image_suffixes():
        pytest.skip(f"the installed Pillow does not decode .{suffix}")
    put(tmp_path / f"a.{suffix}", size=(16, 16))
    (path,) = read_unlabelled(tmp_path).paths
    red, green, _ = load_image(path).getpixel((8, 8))
    assert red > 240 and green < 20


def test_formats_that_pillow_only_writes_or_names_or_runs_are_none(tmp_path: Path) -> None:
    assert not {".pdf", ".palm", ".eps", ".ps", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".mpg"} & image_suffixes()
    assert {".jpg", ".png", ".mpo", ".tif", ".psd"} <= image_suffixes()
    assert "JPEG" in image_formats() and "EPS" not in image_formats()
    put(tmp_path / "a.eps").rename(tmp_path / "a.png")  # Ghostscript would run it
    with pytest.raises(BrokenImageError, match=r"a\.png cannot be read as an image: cannot identify"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Training", "test"), ("train", "validation")])
def test_a_parent_of_train_and_val_is_refused_with_the_folder_to_pass(tmp_path: Path, train: str, val: str) -> None:
    for part in (train, val):
        put(tmp_path / part / "cat" / "1.png")
    first, second = sorted((train, val))
    for classes, part in ((None, train), (("cat",), val)):  # of the training images, and of others
        with pytest.raises(ValueError, match=f"{tmp_path} holds {first}/ and {second}/: pass {tmp_path / part}$"):
            read_labelled(tmp_path, classes)
    put(tmp_path / train / "preview.png")
    put(tmp_path / val / "preview.png")
    with pytest.raises(ValueError, match=f"{tmp_path} holds {first}/ and {second}/: pass {tmp_path / train}$"):
        read_labelled(tmp_path)


def test_flat_parts_are_no_classes(tmp_path: Path) -> None:
    for name in ("train", "test"):
        put(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match=f"{tmp_path} holds test/ and train/: pass {tmp_path}/train$"):
        read_labelled(tmp_path)
    put(tmp_path / "other" / "1.png")  # words such as these may be classes too
    assert read_labelled(tmp_path).classes == ("other", "test", "train")


def test_a_flat_test_folder_beside_train_is_refused_too(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat" / "1.png")
    put(tmp_path / "test" / "1.png")
    with pytest.raises(ValueError, match=f"{tmp_path} holds test/ and train/: pass {tmp_path}/train$"):
        read_labelled(tmp_path)


def test_class_folders_that_hold_only_folders_are_refused(tmp_path: Path) -> None:
    for name in ("animals/cat/1.png", "plants/fern/1.png"):
        put(tmp_path / name)
    with pytest.raises(
        ValueError, match=f"class folder {tmp_path}/animals holds only folders: expected .*/<class>/<im"
    ):
        read_labelled(tmp_path)


def test_a_name_that_is_not_unicode_has_a_fingerprint(tmp_path: Path) -> None:
    put(tmp_path / "a.png").rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")))
    assert len(read_unlabelled(tmp_path).fingerprint) == 64


def test_the_walk_takes_other_suffixes(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a.PNG", "c.jpg"):
        put(tmp_path / name)
    paths, left_out = walk(tmp_path, {".png"})
    assert [path.name for path in paths] == ["b.png", "a.PNG"] and left_out == {"not an image": 1}


def test_images_in_two_sets_are_found_by_their_bytes_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [put(tmp_path / "train" / f"{colour}.bmp", colour) for colour in ("red", "blue", "green")]
    test = [put(tmp_path / "test" / name, colour) for name, colour in (("x.bmp", "blue"), ("red.bmp", "white"))]
    assert {path.stat().st_size for path in (*train, *test)} == {train[0].stat().st_size}, "sizes alone tell nothing"
    assert count_shared(train, test, tmp_path / "test") == 1
    line = f"warning: 1 of 2 images of {tmp_path}/test are training images too, byte for byte\n"
    assert capsys.readouterr().err == line
    assert count_shared(train, test[1:], tmp_path / "test") == 0
    assert capsys.readouterr().err == ""


def test_images_that_only_begin_otherwise_are_not_the_same(tmp_path: Path) -> None:
    left, right = (tmp_path / name for name in ("a.ppm", "b.ppm"))  # not compressed: 12 kB each, equal ends
    for file, colour in ((left, "black"), (right, "white")):
        image = Image.new("RGB", (64, 64))
        image.paste(colour, (0, 0, 2, 2))
        image.save(file)
    assert count_shared([left], [right], tmp_path) == 0
    assert count_shared([left], [left, right], tmp_path) == 1


def test_a_byte_that_changes_in_a_file_of_equal_size_changes_the_content_hash_and_the_stamp(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.bmp").write_bytes(b"pixels %d" % index)
    before = read_unlabelled(tmp_path)
    hashes = (before.fingerprint, before.content, before.stamp)
    (tmp_path / "1.bmp").write_bytes(b"Pixels 1")
    after = read_unlabelled(tmp_path)
    assert after.fingerprint == hashes[0] and after.content != hashes[1] and after.stamp != hashes[2]


def test_at_most_a_thousand_files_are_read_and_images_and_masks_among_them(tmp_path: Path) -> None:
    for name in "image", "mask":
        (tmp_path / f"{name}.png").write_bytes(b"x")
    pairs = (tmp_path / "image.png", tmp_path / "mask.png") * MAX_HASHED
    before = from_paths(pairs, root=tmp_path).content
    for name in "image", "mask":
        (tmp_path / f"{name}.png").write_bytes(b"y")
        assert from_paths(pairs, root=tmp_path).content != before
        (tmp_path / f"{name}.png").write_bytes(b"x")


def test_a_dataset_is_recorded_by_its_files(unlabelled: Path) -> None:
    files = read_unlabelled(unlabelled)
    record = files.record(broken=2)
    assert record == DatasetRecord(
        path=str(unlabelled), count=96, fingerprint=files.fingerprint, broken=2, content=files.content
    )


def test_callers_of_older_versions_find_the_readers_in_backbone() -> None:
    from stillroom import backbone

    assert backbone.read_unlabelled is read_unlabelled
