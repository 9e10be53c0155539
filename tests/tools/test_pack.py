"""Shards of a folder, as the tool packs them."""

import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

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
    with pytest.raises(ValueError, match=r"0000\.png differs from .*000000\.tar: 0000\.png: pack it again"):
        Pack(data=unlabelled, out=tmp_path / "shards", labels=False).run()
    assert not (tmp_path / "shards").exists()
