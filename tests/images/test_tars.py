"""Tar shards: the same images as the folder that they were packed from, and what is wrong with them by name."""

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from stillroom.backbone import InputSpec
from stillroom.images import BrokenImageError, EvaluationView, ImageDataset, SourceError, read_labelled, read_unlabelled
from stillroom.images.files import png_names, refuse_missing_images
from stillroom.images.loaders import EvaluationBatches, build_loader
from stillroom.images.tars import expand
from stillroom.runs import Run

PNG = b"\x89PNG\r\n\x1a\n"


def write_tar(file: Path, members: Mapping[str, bytes], *, twice: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in [*members.items(), *([(twice, b"again")] if twice else [])]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def test_images_are_read_by_name_from_several_shards_in_order(tmp_path: Path) -> None:
    write_tar(tmp_path / "t" / "1.tar", {"b/3.png": b"three", "b/4.jpg": b"four" * 500})
    write_tar(
        tmp_path / "t" / "0.tar", {"./a/1.png": b"one", "a/2.png": b"", "a/notes.txt": b"x", "a/.hidden.png": b"x"}
    )
    for _ in range(2):  # from its members, and from the index
        source = read_unlabelled(tmp_path / "t")
        assert [source.name(index) for index in range(4)] == ["a/1.png", "a/2.png", "b/3.png", "b/4.jpg"]
        assert [source.read(index) for index in range(4)] == [b"one", b"", b"three", b"four" * 500]
        assert source.left_out == {"not an image": 1, "hidden": 1}
        assert source.where(3) == f"{tmp_path}/t/1.tar: b/4.jpg"
        assert source.listing.columns["begins"].itemsize + source.listing.columns["sizes"].itemsize == 16
    assert read_labelled(tmp_path / "t").classes == ("a", "b")


def test_a_pattern_names_shards(tmp_path: Path) -> None:
    assert expand("a/{008..010}-{0..1}.tar")[::3] == ["a/008-0.tar", "a/009-1.tar"]
    for number in range(3):
        write_tar(tmp_path / f"{number:03d}.tar", {f"{number}.png": b"x"})
    assert [p.name for p in read_unlabelled(tmp_path / "{000..002}.tar").paths] == ["0.png", "1.png", "2.png"]
    assert [p.name for p in read_unlabelled(tmp_path / "001.tar").paths] == ["1.png"]
    with pytest.raises(ValueError, match=r"there is no file .*003\.tar"):
        read_unlabelled(tmp_path / "{000..003}.tar")
    for call in (read_unlabelled, read_labelled, refuse_missing_images):
        with pytest.raises(
            ValueError, match=r"a\{2\.\.0\}\.tar: 2\.\.0 is an empty range, put the smaller number first"
        ):
            call(tmp_path / "a{2..0}.tar")


def test_what_a_tar_or_zip_file_leaves_out_is_counted_by_reason_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar, zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        for name in ("a.png", "notes.txt", ".b.png", "a.cls"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"1"))
            archive.writestr(name, b"1")
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.png")
            member.type, member.linkname = kind, "a.png"
            tar.addfile(member)
    counts = {"not an image": 1, "hidden": 1, "link in a tar file": 2, "no regular file": 1}
    assert read_unlabelled(tmp_path / "0.tar").left_out == counts, "a label is not missed"
    assert capsys.readouterr().err == (
        f"left out of {tmp_path}/0.tar: 1 not an image (notes.txt), 1 hidden (.b.png), 2 link in a tar file (1.png), "
        f"1 no regular file (6.png)\n"
    )
    assert read_unlabelled(tmp_path / "0.zip").left_out == {"not an image": 2, "hidden": 1}
    assert "0.zip: 1 hidden (.b.png), 2 not an image (a.cls)\n" in capsys.readouterr().err


def test_an_index_is_that_of_the_files_however_their_paths_are_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "t" / "0.tar", {"a.png": b"a"})
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        archive.writestr("a.png", b"a")
    (tmp_path / "link").symlink_to(tmp_path / "t")
    monkeypatch.chdir(tmp_path)
    for places in ((tmp_path / "t", "t", "./t", "link", "t/0.tar"), (tmp_path / "0.zip", "0.zip")):
        sources = [read_unlabelled(place) for place in places]
        assert len({source.stamp for source in sources}) == len({source.listing.folder for source in sources}) == 1
        assert {source.read(0) for source in sources} == {b"a"}
    assert read_unlabelled("t").where(0) == "t/0.tar: a.png" and capsys.readouterr().err == ""


def test_members_are_named_as_they_are_unpacked(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"/abs/a.png": b"a", "./b.png": b"b", "../c.png": b"c"})
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        for name in ("/abs/a.png", "./b.png", "../c.png"):
            archive.writestr(name, b"x")
    for source in (read_unlabelled(tmp_path / "0.tar"), read_unlabelled(tmp_path / "0.zip")):
        assert png_names(source) == [Path("abs/a.png"), Path("b.png")] and source.left_out == {"hidden": 1}


def test_a_sparse_image_is_refused_and_other_sparse_members_are_no_damage(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as opened:
        opened.write(b"x")
        opened.truncate(2**20)
    (tmp_path / "b.png").write_bytes(b"b")
    (tmp_path / "a.bin").hardlink_to(tmp_path / "a.png")
    for kind in ("gnu", "posix"):
        for name in ("a.bin", "a.png"):
            words = ["tar", "-S", f"--format={kind}", "-cf", f"{name}.tar", name, "b.png"]
            subprocess.run(words, cwd=tmp_path, check=True)
        assert read_unlabelled(tmp_path / "a.bin.tar").read(0) == b"b"
        with pytest.raises(
            ValueError, match=r"a\.png\.tar: a\.png is stored with holes \(tar --sparse\): pack it without"
        ):
            read_unlabelled(tmp_path / "a.png.tar")


def test_labels_lie_beside_images_as_integers_or_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "n" / "0.tar", {"x.jpg": b"x", "x.cls": b"10", "y.jpg": b"y", "y.cls": b" 9\n"})
    source = read_labelled(tmp_path / "n")
    assert (source.classes, [source.name(i) for i in range(2)], list(source.labels or ())) == (
        ("9", "10"),
        ["y.jpg", "x.jpg"],
        [0, 1],
    )
    write_tar(tmp_path / "c" / "0.tar", {"x.jpg": b"x", "x.cls": b"cat", "y.jpg": b"y", "y.cls": b"ant"})
    assert read_labelled(tmp_path / "c").classes == ("ant", "cat")
    with pytest.raises(ValueError, match=r"the classes of .*c differ from the training set's: missing \['9'\], extra"):
        read_labelled(tmp_path / "c", ("9", "ant"))
    (tmp_path / "n" / "classes.txt").write_text("".join(f"c{number}\n" for number in range(11)))
    with pytest.raises(ValueError, match="has no images of class c0"):
        read_labelled(tmp_path / "n")
    (tmp_path / "n" / "classes.txt").write_text("only\n")
    with pytest.raises(ValueError, match="n has the label 10, and 1 names of classes"):
        read_labelled(tmp_path / "n")
    assert read_unlabelled(tmp_path / "n").labels is None, "labels that are not needed are not read"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"crane\nowl\ncrane\n",
            r"classes\.txt names the class 'crane' twice, in lines 1 and 3: give each class a name",
        ),
        (b"\nowl\n\n", r"classes\.txt names the class '' twice, in lines 1 and 3"),
        (b"caf\xe9\n", r"classes\.txt is not text in UTF-8 \(.*\): save it with one name of a class per line"),
    ],
)
def test_names_of_classes_that_would_merge_or_cannot_be_read_are_refused_where_labels_are_needed(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    write_tar(tmp_path / "0.tar", {"x.jpg": b"x", "x.cls": b"0", "y.jpg": b"y", "y.cls": b"2"})
    (tmp_path / "classes.txt").write_bytes(content)
    for place in (tmp_path, tmp_path / "0.tar"):
        with pytest.raises(ValueError, match=sentence):
            read_labelled(place)
        assert len(read_unlabelled(place)) == 2


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (
            {"x.cls": b"3.5", "y.cls": b"1"},
            r"labels .*0\.tar: x\.jpg by '3\.5', which is neither an integer nor the name of a class",
        ),
        ({"x.cls": b"", "y.cls": b"1"}, r"labels .*0\.tar: x\.jpg by '', which is neither"),
        ({"x.cls": b"1", "y.cls": b"cat"}, "has integers and names as labels, such as 1 and 'cat'"),
        ({"x.cls": b"1"}, r"has labels \(\.cls\) of 1 of its 2 images only"),
    ],
)
def test_labels_that_are_none_are_refused_by_name(tmp_path: Path, labels: dict[str, bytes], sentence: str) -> None:
    write_tar(tmp_path / "t" / "0.tar", {"x.jpg": b"x", "y.jpg": b"y", **labels})
    with pytest.raises(ValueError, match=sentence):
        read_labelled(tmp_path / "t")


def test_an_image_in_a_shard_is_a_file_while_a_library_needs_one(tmp_path: Path) -> None:
    source = read_unlabelled(write_tar(tmp_path / "0.tar", {"a/1.png": b"one"}))
    with source.as_file(0) as file:
        assert (file.name, file.read_bytes()) == ("1.png", b"one")
    assert not file.exists()
    assert source.encoded[0] == b"one" and len(source.encoded) == 1


# --- bad input


def test_a_truncated_last_member_is_refused_by_name(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "0.tar", {"a.png": b"a" * 700, "b.png": b"b" * 700})
    whole = file.read_bytes()
    for size in (512 + 1024 + 512 + 300, 512 + 1024 + 100, 512 + 1024, 512 + 1024 + 512 + 1024):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"0\.tar is (truncated|damaged).*(a|b)\.png") as refused:
            read_unlabelled(file)
        assert "\n" not in str(refused.value)
    file.write_bytes(whole[: 512 + 1024 + 512 + 300])
    with pytest.raises(
        ValueError, match=r"truncated: its last member b\.png ends at byte 2748, the file has 2348; copy"
    ):
        read_unlabelled(file)


def test_tars_that_cannot_be_indexed_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "z.tar", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"z\.tar cannot be read at random \(.*\): pass uncompressed tar files"):
        read_unlabelled(tmp_path / "z.tar")
    one = write_tar(tmp_path / "one.tar", {"a.png": b"a"}).read_bytes()
    (tmp_path / "cat.tar").write_bytes(one + one)
    with pytest.raises(
        ValueError, match=r"cat\.tar goes on after its end, or is damaged there: join tar files by `tar"
    ):
        read_unlabelled(tmp_path / "cat.tar")
    (tmp_path / "bad.tar").write_bytes(one[:1024] + b"x" * 512 + one[1536:])
    with pytest.raises(ValueError, match=r"bad\.tar goes on after its end, or is damaged there"):
        read_unlabelled(tmp_path / "bad.tar")
    write_tar(tmp_path / "none.tar", {"a.txt": b"a"})
    with pytest.raises(ValueError, match=r"none\.tar holds no images: expected members of formats that Pillow decodes"):
        read_unlabelled(tmp_path / "none.tar")


def test_two_members_of_one_name_are_refused_with_their_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "t" / "0.tar", {"a.png": b"a", "b.png": b"b"})
    write_tar(tmp_path / "t" / "1.tar", {"c.png": b"c", "a.png": b"other"})
    with pytest.raises(ValueError, match=r"0\.tar and .*1\.tar both hold a\.png: each image needs a name of its own"):
        read_unlabelled(tmp_path / "t")
    write_tar(tmp_path / "2.tar", {"a.png": b"a"}, twice="a.png")
    with pytest.raises(ValueError, match=r"2\.tar and .*2\.tar both hold a\.png"):
        read_unlabelled(tmp_path / "2.tar")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_member_that_is_no_image_is_named_with_its_shard(tmp_path: Path, run: Run, workers: int) -> None:
    source = read_unlabelled(write_tar(tmp_path / "0.tar", {"a/no.png": PNG + b"nothing"}))
    loader = build_loader(ImageDataset(source, torch.tensor), EvaluationBatches(1, 1, run), workers)
    with pytest.raises(BrokenImageError, match=r"0\.tar: a/no\.png cannot be read as an image: [^\n]*$"):
        list(loader)


def test_an_index_older_than_its_tar_is_made_again_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_tar(tmp_path / "0.tar", {"a.png": b"a"})
    before = read_unlabelled(file)
    stamp, fingerprint = before.stamp, before.fingerprint
    write_tar(file, {"b.png": b"longer", "a.png": b"a"})
    with pytest.raises(SourceError, match=r"0\.tar has changed since its index was made: start again"):
        before.read(0)
    after = read_unlabelled(file)
    assert [after.name(index) for index in range(2)] == ["b.png", "a.png"] and after.read(0) == b"longer"
    assert after.fingerprint != fingerprint and after.stamp != stamp
    assert f"note: the index of {file} is older than what it lists: it is made again\n" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_stops_a_run_even_if_broken_images_are_skipped(
    tmp_path: Path, run: Run, workers: int
) -> None:
    for number in range(2):
        write_tar(tmp_path / "t" / f"{number}.tar", {f"{number}.png": PNG})
    source = read_unlabelled(tmp_path / "t")
    (tmp_path / "t" / "1.tar").unlink()
    dataset = ImageDataset(source, torch.tensor, on_broken="skip")
    sentence = r"^\S*1\.tar cannot be read any more \(No such file or directory\): put it back, then resume$"
    with pytest.raises(SourceError, match=sentence):
        list(build_loader(dataset, EvaluationBatches(2, 2, run), workers))
    with pytest.raises(SourceError, match=sentence):
        source.read(1)


# --- the same samples


def test_shards_give_the_samples_of_their_folder(labelled: Callable[..., Path], tmp_path: Path, run: Run) -> None:
    folder = labelled("train", per_class=4)
    files = read_labelled(folder)
    members = {files.name(index): files.read(index) for index in range(len(files))}
    names = [*members]
    write_tar(tmp_path / "t" / "0.tar", {name: members[name] for name in names[:5]})
    write_tar(tmp_path / "t" / "1.tar", {name: members[name] for name in names[5:]})
    tars = read_labelled(tmp_path / "t")
    assert (tars.labels, tars.classes) == (files.labels, files.classes)
    assert (tars.fingerprint, tars.content) == (files.fingerprint, files.content)
    view = EvaluationView(InputSpec(size=16))
    for one, two in zip(
        *(build_loader(ImageDataset(source, view), EvaluationBatches(12, 5, run), 0) for source in (files, tars)),
        strict=True,
    ):
        assert torch.equal(one.images, two.images) and torch.equal(one.indices, two.indices)
