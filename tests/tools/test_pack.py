"""Shards of a folder, as the tool packs them."""

import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from stillroom.images import read_labelled, read_unlabelled

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import pack
from pack import Pack


def test_names_labels_and_order_are_kept_and_shards_have_their_size(
    labelled: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = labelled("train", per_class=5)
    monkeypatch.setattr(pack, "MIB", 2**14)  # so that a few images fill a shard
    Pack(data=folder, out=tmp_path / "shards", shard_mib=1).run()
    files, packed = read_labelled(folder), read_labelled(tmp_path / "shards")
    assert packed.fingerprint == files.fingerprint and packed.content == files.content
    assert (packed.labels, packed.classes) == (files.labels, files.classes)
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"{number:06d}.tar" for number in range(len(shards))] and len(
        shards
    ) > 3
    assert all(shard.stat().st_size < 2**14 + tarfile.RECORDSIZE for shard in shards)
    with tarfile.open(shards[0]) as tar:
        assert tar.getnames()[:2] == ["blue/000.png", "blue/000.cls"]
        content = tar.extractfile("blue/000.cls")
        assert content is not None and content.read() == b"0", "as WebDataset decodes it"
    printed = capsys.readouterr().out
    assert (
        f"15 images of 3 classes in {len(shards)} shards, read back and equal, fingerprint {files.fingerprint}"
        in printed
    )


def test_images_without_labels_are_packed_where_that_is_said(unlabelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unlabelled holds no class folders: .*; or pass --no-labels"):
        Pack(data=unlabelled, out=tmp_path / "shards").run()
    assert not (tmp_path / "shards").exists()
    Pack(data=unlabelled, out=tmp_path / "shards", labels=False).run()
    assert read_unlabelled(tmp_path / "shards").fingerprint == read_unlabelled(unlabelled).fingerprint


def test_a_shard_that_differs_from_its_images_is_not_kept(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pack.samples

    def torn(source: object) -> object:
        return ([(name, content[:-1] + b"?") for name, content in members] for members in real(source))

    monkeypatch.setattr(pack, "samples", torn)
    with pytest.raises(ValueError, match=r"unlabelled/0000\.png was not read back as it was written: pack"):
        Pack(data=unlabelled, out=tmp_path / "shards", labels=False).run()
    assert not (tmp_path / "shards").exists()


def webdataset_samples(folder: Path) -> list[dict[str, bytes]]:
    """The samples of shards by WebDataset's rule: neighbouring members of one name up to its first dot."""
    samples: list[dict[str, bytes]] = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, kind = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name).groups()
                if not samples or samples[-1]["key"] != key:
                    samples.append({"key": key})
                samples[-1][kind] = tar.extractfile(member).read()
    return samples


def test_an_image_without_a_suffix_gets_that_of_its_format(tmp_path: Path, unlabelled: Path) -> None:
    image = (unlabelled / "0000.png").read_bytes()
    for name in ("plain", "other.dat", "usual.png"):
        (tmp_path / name).write_bytes(image)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo", "JPEG")
    (tmp_path / "list.csv").write_text("path,label\nplain,a\nother.dat,a\nusual.png,b\nphoto,b\n")
    Pack(data=tmp_path / "list.csv", out=tmp_path / "shards").run()
    packed, listed = read_labelled(tmp_path / "shards"), read_labelled(tmp_path / "list.csv")
    names = ["plain.png", "other.dat.png", "usual.png", "photo.jpg"]
    assert [packed.name(index) for index in range(4)] == names
    assert packed.labels == listed.labels and packed.content == listed.content
    assert [sample["cls"] for sample in webdataset_samples(tmp_path / "shards")] == [b"0", b"0", b"1", b"1"]


def test_a_data_set_whose_images_have_no_path_is_packed(
    tmp_path: Path, unlabelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": file.read_bytes(), "path": None} for file in sorted(unlabelled.iterdir())[:3]]
    rows = datasets.Dataset.from_dict({"image": images, "label": ["b", "a", "b"]})
    rows.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    Pack(data=tmp_path / "saved", out=tmp_path / "shards").run()
    packed = read_labelled(tmp_path / "shards")
    assert [packed.name(index) for index in range(3)] == ["000000001.png", "000000000.png", "000000002.png"]
    assert packed.classes == ("a", "b") and [*packed.labels] == [0, 1, 1]
    assert f"fingerprint {packed.fingerprint}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["a.png", ".b.png"], r"/\.b\.png is hidden, \.b\.png: readers of shards leave it out; rename it"),
        (["a.png", ".c/b.png"], r"b\.png is hidden, \.c/b\.png: readers of shards leave it out"),
        (["a.png", "b.png", "a.png"], r"/a\.png is listed twice: .* remove one of the lines"),
        (["a.x.png", "a.y.png"], r"/a\.x\.png and .*/a\.y\.png would be one sample, a: .*rename one of them"),
        (["c/a.png", "b.png", "c/a.jpg"], r"c/a\.png and .*c/a\.jpg would be one sample, c/a: "),
    ],
)
@pytest.mark.parametrize("labels", [True, False])
def test_names_that_readers_of_shards_would_lose_are_refused_by_the_users_files(
    tmp_path: Path, unlabelled: Path, files: list[str], sentence: str, labels: bool
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((unlabelled / "0000.png").read_bytes())
    lines = [f"{file},{number}" for number, file in enumerate(files)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    with pytest.raises(ValueError, match=sentence) as caught:
        Pack(data=tmp_path / "list.csv", out=tmp_path / "shards", labels=labels).run()
    assert "partial" not in str(caught.value) and not (tmp_path / "shards").exists()


def test_webdataset_reads_a_sample_for_each_image(tmp_path: Path, labelled: Callable[..., Path]) -> None:
    folder = labelled("train", per_class=2)
    (folder / "blue" / "000.png").rename(folder / "blue" / "0.small.png")
    Pack(data=folder, out=tmp_path / "shards").run()
    files = read_labelled(folder)
    samples = webdataset_samples(tmp_path / "shards")
    assert [sample["cls"] for sample in samples] == [b"%d" % label for label in files.labels]
    assert [next(iter(sample.items() - {("key", sample["key"]), ("cls", sample["cls"])}))[1] for sample in samples] == [
        *files.encoded
    ]
