"""Every kind of source: the same seed gives the same samples, and what is wrong with one is said by name."""

import csv
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from PIL import Image
from torch import Tensor

from stillroom.images import ImageDataset, Source, SourceError, lists, read_labelled, read_unlabelled
from stillroom.images.files import read_images, refuse_missing_images
from stillroom.images.labels import Columns
from stillroom.images.loaders import TrainingBatches, build_loader
from stillroom.images.picture import Picture
from stillroom.images.storage import address, local_path
from stillroom.runs import Run


def noisy_view(picture: Picture, generator: torch.Generator) -> Tensor:
    pixels = torch.tensor(picture.pixels()[:4, :4]).permute(2, 0, 1)
    return pixels // 2 + torch.randint(0, 100, (3, 4, 4), dtype=torch.uint8, generator=generator)


@pytest.fixture
def folder(labelled: Callable[..., Path]) -> Path:
    return labelled("train", per_class=4)


@pytest.fixture
def memory() -> str:
    """An empty bucket."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return "memory://bucket"


def write_table(files: Source, file: Path, prefix: str = "") -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["number", "path", "label"])
        for index in range(len(files)):
            label = files.classes[files.label(index) or 0]
            writer.writerow([index, f"{prefix}{files.paths[index].relative_to(file.parent).as_posix()}", label])
    return file


def write_parquet(files: Source, file: Path, **columns: Any) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    paths = [str(path) for path in files.paths]
    parquet.write_table(
        arrow.table({"image": paths, "class": [files.classes[label] for label in files.labels or ()], **columns}), file
    )
    return file


def make(kind: str, files: Source, tmp_path: Path, memory: str) -> str | Path:
    """A copy of a labelled folder, of another kind."""
    members = {files.name(index): files.read(index) for index in range(len(files))}
    match kind:
        case "list":
            (tmp_path / "list.txt").write_text("".join(f"train/{name}\n" for name in members))
            return tmp_path / "list.txt"
        case "csv":
            return write_table(files, tmp_path / "table.csv")
        case "parquet":
            return write_parquet(files, tmp_path / "table.parquet")
        case "tar" | "remote tar":
            packed = tmp_path / "shards"
            packed.mkdir()
            for number in range(2):
                with tarfile.open(packed / f"{number}.tar", "w") as tar:
                    for name in list(members)[7 * number : 7 * number + 7]:
                        tar.add(files.root / name, name)
            if kind == "tar":
                return packed
            fsspec.filesystem("memory").put(f"{packed}/", "/bucket/shards/", recursive=True)
            return f"{memory}/shards"
        case "zip" | "packed zip" | "remote zip":
            packing = zipfile.ZIP_DEFLATED if kind == "packed zip" else zipfile.ZIP_STORED
            with zipfile.ZipFile(tmp_path / "images.zip", "w", packing) as archive:
                for name in reversed(members):
                    archive.writestr(name, members[name])
            if kind != "remote zip":
                return tmp_path / "images.zip"
            fsspec.filesystem("memory").put(str(tmp_path / "images.zip"), "/bucket/images.zip")
            return f"{memory}/images.zip"
        case "file address":
            return f"file://{files.root}"
        case "remote folder" | "remote list" | "list of addresses" | "remote csv":
            fsspec.filesystem("memory").pipe({f"/bucket/train/{name}": content for name, content in members.items()})
            if kind == "remote folder":
                return f"{memory}/train"
            if kind == "remote csv":
                table = write_table(files, tmp_path / "table.csv")
                fsspec.filesystem("memory").put(str(table), "/bucket/table.csv")
                return f"{memory}/table.csv"
            prefix = "train" if kind == "remote list" else f"{memory}/train"
            lines = "".join(f"{prefix}/{name}\n" for name in members)
            if kind == "remote list":
                fsspec.filesystem("memory").pipe("/bucket/list.txt", lines.encode())
                return f"{memory}/list.txt"
            (tmp_path / "list.txt").write_text(lines)
            return tmp_path / "list.txt"
    assert kind == "datasets"
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(files.classes))}
    rows = {
        "image": [{"bytes": content, "path": name} for name, content in members.items()],
        "label": list(files.labels or ()),
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


KINDS = (
    "list",
    "csv",
    "parquet",
    "tar",
    "zip",
    "packed zip",
    "file address",
    "remote folder",
    "remote list",
    "list of addresses",
    "remote csv",
    "remote tar",
    "remote zip",
    "datasets",
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_samples_from_every_kind_of_source(
    folder: Path, tmp_path: Path, memory: str, kind: str, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    files = read_labelled(folder)
    place = make(kind, files, tmp_path, memory)
    refuse_missing_images(Path(place))
    copy = read_labelled(Path(place))  # a command's flag
    assert (copy.labels, copy.classes, copy.content) == (files.labels, files.classes, files.content)
    assert read_labelled(place, files.classes[::-1]).labels == read_labelled(folder, files.classes[::-1]).labels
    plain = read_unlabelled(place)
    assert plain.labels is None and plain.content == read_unlabelled(folder).content
    if kind != "datasets":  # which keeps the last part of a path only
        assert copy.fingerprint == plain.fingerprint == files.fingerprint
        assert [copy.name(index) for index in range(12)] == [files.name(index) for index in range(12)]
    one, two = (
        list(build_loader(ImageDataset(source, noisy_view, seed=1), TrainingBatches(12, 4, 2, 1, run), 0))
        for source in (files, pickle.loads(pickle.dumps(copy)))  # noqa: S301  # as a worker that is not forked has it
    )
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first.images, second.images) and torch.equal(first.indices, second.indices)
    assert copy.subset([5, 3]).read(1) == files.read(3)
    assert copy.stamp == read_labelled(place).stamp != copy.subset([1]).stamp


def test_an_address_survives_a_path_and_others_are_paths_here() -> None:
    assert address(Path("s3://bucket/a b/{00..09}.tar")) == "s3://bucket/a b/{00..09}.tar"
    assert address("https://host/x.zip") == "https://host/x.zip"
    for chained in ("simplecache::memory://b/x.tar", "zip://a/b.png::s3://b/x.zip", "simplecache::file:///a/b"):
        assert address(Path(chained)) == address(chained) == chained
    assert [address(path) for path in ("a/b", "/a:/b", "C:/a", "file:///a", "no:thing")] == [None] * 5
    assert local_path(Path("file:///a/b")) == Path("/a/b") and local_path("a") == Path("a")


# --- tables


def table(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_blank_lines_of_a_table_are_no_rows_and_lists_take_file_addresses(folder: Path, tmp_path: Path) -> None:
    files = read_unlabelled(folder)
    rows = "\n".join(f"{path},x" for path in files.paths)
    assert read_unlabelled(table(tmp_path / "t.csv", f"path,label\n\n{rows}\n\n")).fingerprint == files.fingerprint
    lines = "".join(f"file://{path}\n" for path in files.paths)
    assert [*read_unlabelled(table(tmp_path / "l.txt", lines)).paths] == [*files.paths]
    assert len(read_unlabelled(table(tmp_path / "l.csv", f"path\n{lines}"))) == len(files)
    with pytest.raises(
        ValueError, match=r"m\.txt lists files of several file systems, such as s3://b/x: make a list of"
    ):
        read_unlabelled(table(tmp_path / "m.txt", f"{lines}s3://b/x\n"))


def test_text_of_parquet_is_text_however_it_is_stored(folder: Path, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = read_labelled(folder)
    labels = arrow.array([files.classes[label] for label in files.labels or ()]).dictionary_encode()
    paths = arrow.array([str(path) for path in files.paths])
    for column in (paths.cast(arrow.large_string()), paths.cast(arrow.string_view()), paths.dictionary_encode()):
        parquet.write_table(arrow.table({"image": column, "class": labels}), tmp_path / "t.parquet")
        source = read_labelled(tmp_path / "t.parquet")
        assert (source.fingerprint, source.labels, source.classes) == (files.fingerprint, files.labels, files.classes)


def test_columns_are_named_by_flags(folder: Path, tmp_path: Path) -> None:
    names = [path.relative_to(tmp_path).as_posix() for path in read_unlabelled(folder).paths]
    rows = "".join(f"{number}\t{name}\t{'b' if number % 2 else 'a'}\n" for number, name in enumerate(names))
    file = table(tmp_path / "t.tsv", f"id\twhere\tkind\n{rows}")
    columns = Columns(image="where", label="kind")
    assert read_labelled(file, columns=columns).classes == ("a", "b")
    assert read_unlabelled(file, columns).fingerprint == read_unlabelled(folder).fingerprint
    assert read_labelled(file, columns=Columns(image="where")).classes == read_labelled(folder).classes, "by folders"
    for wrong, words in (
        (Columns(), r"t\.tsv has none of the usual columns, only id, where, kind: pass --columns\.image one of them"),
        (Columns(image="x"), r"t\.tsv has no column 'x', only id, where, kind: pass --columns\.image one of them"),
        (Columns(image="where", label="y"), r"t\.tsv has no column 'y', only .*: pass --columns\.label one of them"),
    ):
        with pytest.raises(ValueError, match=words):
            read_labelled(file, columns=wrong)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label\nimages/0.png,2.5\n", r"labels images/0\.png by '2\.5', which is neither an integer nor the name"),
        (
            "path,label\nimages/0.png,\n",
            r"labels images/0\.png by '', which is neither an integer nor the name of a cl",
        ),
        ("path,label\nimages/0.png,1\nimages/1.png,cat\n", "has integers and names as labels, such as 1 and 'cat'"),
        ("path,label\nimages/0.png\n", r"t\.csv: line 2 has 1 fields, its header 2"),
        ("path,label\nimages/9.png,1\n", r"t\.csv lists 1 files that do not exist, the first is .*images/9\.png"),
        ("path,label\n", r"t\.csv lists no images"),
        ('path\n"images/0.png\n', r"t\.csv is not a table of comma-separated values \(unexpected end of data\)"),
        ("", r"t\.csv has no columns: its first line should name them"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_name(tmp_path: Path, content: str, words: str) -> None:
    for number in range(2):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=words):
        read_labelled(table(tmp_path / "t.csv", content))


def test_labels_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"x")
    assert len(read_unlabelled(table(tmp_path / "t.csv", "path,label\n0.png,2.5\n"))) == 1


def test_a_parquet_file_is_refused_by_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    files = read_labelled(folder)
    file = write_parquet(files, tmp_path / "t.parquet", number=range(12), share=[0.5] * 12, none=[None, *["a"] * 11])
    for columns, words in (
        (
            Columns(image="url"),
            r"t\.parquet has no column 'url', only image, class, number, share, none: pass --columns\.",
        ),
        (Columns(image="number"), r"t\.parquet: column 'number' is int64, expected text, the paths of the images"),
        (Columns(label="share"), r"t\.parquet labels .*000\.png by 0\.5, which is neither an integer nor the name of"),
        (Columns(label="none"), r"t\.parquet labels .*000\.png by nan, which is neither an integer nor the name of"),
    ):
        with pytest.raises(ValueError, match=words):
            read_labelled(file, columns=columns)
    file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"t\.parquet is not a Parquet file \("):
        read_unlabelled(file)


def test_a_large_table_is_kept_with_its_labels(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = read_labelled(folder)
    file = write_table(files, tmp_path / "t.csv")
    monkeypatch.setattr(lists, "LARGE_LIST", 0)
    assert read_labelled(file).listing.folder is not None
    monkeypatch.setattr(lists, "_write", None)
    kept = read_labelled(file)
    assert (kept.labels, kept.classes, kept.fingerprint) == (files.labels, files.classes, files.fingerprint)


# --- zip files


def test_a_zip_file_that_cannot_be_indexed_is_refused(tmp_path: Path, folder: Path, memory: str) -> None:
    file = Path(make("packed zip", read_labelled(folder), tmp_path, memory))
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"images\.zip is not a whole zip file \(.*\): copy it again"):
        read_unlabelled(file)
    with zipfile.ZipFile(file, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.png", b"one")
        archive.writestr("a.png", b"two")
    with pytest.raises(ValueError, match=r"images\.zip holds a\.png twice: remove one of them"):
        read_unlabelled(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.png", b"one")
    with pytest.raises(ValueError, match=r"images\.zip: a\.png is encrypted, or not packed by deflate: pack it again"):
        read_unlabelled(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", b"one")
    with pytest.raises(
        ValueError, match=r"images\.zip holds no images: expected members of formats that Pillow decodes"
    ):
        read_unlabelled(file)


def test_a_damaged_member_of_a_zip_file_is_a_broken_image_and_a_changed_file_stops(
    folder: Path, tmp_path: Path, memory: str
) -> None:
    file = Path(make("packed zip", read_labelled(folder), tmp_path, memory))
    source = read_unlabelled(file)
    stat, content = file.stat(), bytearray(file.read_bytes())
    begin = int(source.listing.columns["begins"][3]) + 80
    content[begin : begin + 40] = b"\xff" * 40
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(OSError, match="damaged in its zip file"):
        source.read(3)
    file.touch()
    with pytest.raises(SourceError, match=r"images\.zip has changed since its index was made"):
        source.read(0)
    file.unlink()
    with pytest.raises(SourceError, match=r"images\.zip cannot be read any more \(No such file or directory\): put it"):
        source.read(0)


# --- addresses


def test_chained_addresses_are_read_as_others_are(folder: Path, tmp_path: Path, memory: str) -> None:
    files = read_labelled(folder)
    for kind in ("remote tar", "remote zip", "remote folder"):
        place = Path(f"simplecache::{make(kind, files, tmp_path, memory)}")
        refuse_missing_images(place)
        assert read_unlabelled(place).content == read_unlabelled(folder).content
    lines = "".join(f"simplecache::{memory}/train/{files.name(index)}\n" for index in range(12))
    source = read_labelled(table(tmp_path / "chained.txt", lines))
    assert (source.fingerprint, source.labels, source.content) == (files.fingerprint, files.labels, files.content)


class Failing(MemoryFileSystem):
    """A bucket whose driver raises errors of its own, `status` as those of HTTP have it."""

    protocol = "failing"
    error: ClassVar[Exception | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("failing://"))

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def info(self, path: str, **kwargs: Any) -> Any:
        try:
            self._fail()
        except Exception as error:
            raise FileNotFoundError(path) from error  # as fsspec's HTTP does
        return super().info(path, **kwargs)

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._fail()
        return super()._open(path, *args, **kwargs)

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._fail()
        return super().find(path, *args, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._fail()
        return super().cat_file(path, *args, **kwargs)


class AnswerError(Exception):
    """As aiohttp's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} of the server")
        self.status = status


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "there is no permission to read {}"), (500, "{} cannot be read: 500"), (404, "there is no {}")],
)
def test_errors_of_a_driver_are_said_as_what_they_are(
    memory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, words: str
) -> None:
    fsspec.register_implementation("failing", Failing, clobber=True)
    fsspec.filesystem("memory").pipe({f"/b/{name}": b"x" for name in ("a/0.png", "0.tar", "l.txt", "t.csv", "z.zip")})
    source = read_unlabelled("failing://b/a")
    monkeypatch.setattr(Failing, "error", AnswerError(status))
    for name in ("a", "0.tar", "l.txt", "t.csv", "z.zip"):
        with pytest.raises(ValueError, match=words.format(f"failing://b/{name}")):
            read_unlabelled(f"failing://b/{name}")
    with pytest.raises(OSError, match="of the server"):
        source.read(0)
    (tmp_path / "l.txt").write_text("failing://b/a/0.png\n")
    with pytest.raises(ValueError, match=r"failing://b/a/0\.png|l\.txt lists files that do not exist"):
        read_unlabelled(tmp_path / "l.txt")


class Denied(MemoryFileSystem):
    """A bucket that nobody may read."""

    protocol = "denied"

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        raise PermissionError("AccessDenied")

    def info(self, path: str, **kwargs: Any) -> Any:
        raise PermissionError("AccessDenied")

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError("AccessDenied")


def test_an_address_that_cannot_be_read_is_refused_by_name(
    memory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fsspec.register_implementation("denied", Denied, clobber=True)
    for name in ("images", "list.txt", "0.tar", "images.zip"):
        with pytest.raises(
            ValueError, match=rf"no permission to read denied://b/{name} \(AccessDenied\): set the cred"
        ):
            read_unlabelled(Path(f"denied://b/{name}"))
        with pytest.raises(ValueError, match=rf"there is no memory://bucket/{name}"):
            read_unlabelled(Path(f"{memory}/{name}"))
    lacking = {"class": "no_such_driver.FileSystem", "err": "install no-such-driver"}
    monkeypatch.setitem(known_implementations, "lacking", lacking)
    with pytest.raises(ValueError, match=r"lacking://b/x needs a driver that is not installed: install no-such-driver"):
        read_unlabelled("lacking://b/x")
    with pytest.raises(
        ValueError, match=r"nonsense://b/x is not an address that fsspec knows \(.*nonsense\): check how"
    ):
        read_unlabelled("nonsense://b/x")
    with pytest.raises(
        ValueError, match=r"lacking://b/x\.png needs a driver that is not installed: install no-such-dr"
    ):
        read_unlabelled(table(tmp_path / "l.csv", "path\nlacking://b/x.png\n"))


@pytest.mark.parametrize("name", ["x.csv", "x.zip", "x.parquet", "x.txt", "x.tar", "x.tsv"])
def test_a_missing_file_is_called_a_file(tmp_path: Path, name: str) -> None:
    for call in (read_unlabelled, read_labelled, read_images, refuse_missing_images):
        with pytest.raises(ValueError, match=rf"^there is no file {tmp_path}/{name}$"):
            call(tmp_path / name)


def test_a_remote_list_of_files_that_do_not_exist_or_lie_elsewhere_is_refused(memory: str) -> None:
    fsspec.filesystem("memory").pipe({"/bucket/a.txt": b"no.png\n", "/bucket/b.txt": b"memory://bucket/x\ns3://b/y\n"})
    with pytest.raises(ValueError, match=r"a\.txt lists files that do not exist, such as .*no\.png"):
        read_unlabelled(f"{memory}/a.txt")
    with pytest.raises(ValueError, match=r"b\.txt lists files of several file systems, such as memory://bucket/x"):
        read_unlabelled(f"{memory}/b.txt")


def test_a_remote_image_that_vanishes_is_broken_and_a_shard_stops(folder: Path, tmp_path: Path, memory: str) -> None:
    files = read_labelled(folder)
    loose, shards = (read_unlabelled(make(kind, files, tmp_path, memory)) for kind in ("remote folder", "remote tar"))
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    with pytest.raises(FileNotFoundError):
        loose.read(0)
    with pytest.raises(SourceError, match=r"memory://bucket/shards/0\.tar cannot be read any more .*: put it back"):
        shards.read(0)


# --- datasets


def test_a_saved_data_set_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "PNG")
    one = {"bytes": buffer.getvalue(), "path": None}

    def save(name: str, **rows: Any) -> Path:
        features = datasets.Features(
            {key: datasets.Image() if key == "image" else datasets.Value("string") for key in rows}
        )
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / name)
        return tmp_path / name

    assert read_unlabelled(save("unnamed", image=[one, one])).name(1) == "000000001"
    for path in (None, "x.png", "cat/x.png"):  # equal paths are told apart by their rows, which are no classes
        place = save(f"unlabelled {path}".replace("/", " "), image=[{**one, "path": path}] * 2, note=["a", "b"])
        with pytest.raises(
            ValueError, match=r"has no column of labels, only image, note: pass --columns\.label, or add"
        ):
            read_labelled(place)
        assert read_labelled(place, columns=Columns(label="note")).classes == ("a", "b")
    twice = read_unlabelled(save("twice", image=[{**one, "path": "a/x.png"}, {**one, "path": "b/x.png"}] * 2))
    assert [twice.name(index) for index in (0, 3)] == ["000000000/x.png", "000000003/x.png"]
    with pytest.raises(ValueError, match="row 1 has no image"):
        read_unlabelled(save("gap", image=[one, None]))
    with pytest.raises(ValueError, match=r"column 'path' is .*, expected images: pass --columns\.image"):
        read_unlabelled(save("paths", path=["a.png"]))
    datasets.DatasetDict({"train": datasets.load_from_disk(str(tmp_path / "twice"))}).save_to_disk(tmp_path / "dict")
    with pytest.raises(ValueError, match=r"dict holds several data sets, train: pass .*dict/train"):
        read_unlabelled(tmp_path / "dict")


def test_a_damaged_data_set_is_refused_by_name(folder: Path, tmp_path: Path, memory: str) -> None:
    place = Path(make("datasets", read_labelled(folder), tmp_path, memory))
    (arrow,) = place.glob("*.arrow")
    for file, damage in ((arrow, 2), (arrow, None), (place / "state.json", 9), (place / "dataset_info.json", 3)):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // damage] if damage else b"")
        with pytest.raises(
            ValueError, match=r"saved is not a whole data set that `save_to_disk` wrote \(.*\): save or"
        ):
            read_unlabelled(place)
        file.write_bytes(whole)
    (place / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="saved is not a whole data set"):
        read_unlabelled(place)


def test_one_image_is_predicted_as_before(folder: Path) -> None:
    image = next(iter(read_unlabelled(folder).paths))
    assert [*read_images(image).paths] == [image.resolve()]
