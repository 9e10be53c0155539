"""Seeded parts of image folders."""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.images import Source, read_labelled, read_unlabelled
from stillroom.images.labels import Columns

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from make_subset import Subset, select_images
from pack import Pack


@pytest.fixture
def folder(labelled: Callable[..., Path]) -> Path:
    return labelled("train", per_class=10, classes=("a", "b", "c", "d"))


def test_per_class_selects_that_many_of_each_class_and_repeats_with_the_seed(folder: Path, tmp_path: Path) -> None:
    parts = [select_images(Subset(data=folder, out=tmp_path / "x", per_class=3, seed=seed)) for seed in (0, 0, 1)]
    assert np.bincount(parts[0].labels).tolist() == [3, 3, 3, 3]
    assert parts[0].fingerprint == parts[1].fingerprint != parts[2].fingerprint


def test_a_fraction_is_the_same_share_of_each_class(folder: Path, tmp_path: Path, unlabelled: Path) -> None:
    assert np.bincount(select_images(Subset(data=folder, out=tmp_path / "x", fraction=0.2)).labels).tolist() == [
        2,
        2,
        2,
        2,
    ]
    assert len(select_images(Subset(data=unlabelled, out=tmp_path / "x", fraction=0.25))) == 24


def test_classes_are_selected_by_simregs_rule(folder: Path, tmp_path: Path) -> None:
    part = select_images(Subset(data=folder, out=tmp_path / "x", classes=2))
    np.random.seed(1234)  # the rule, as SimReg states it
    expected = set(np.random.permutation(["a", "b", "c", "d"])[:2])
    assert {part.classes[label] for label in part.labels} == expected and len(part) == 20


def test_a_list_and_a_folder_of_links_hold_the_same_images(folder: Path, tmp_path: Path) -> None:
    part = select_images(Subset(data=folder, out=tmp_path / "x", per_class=2))
    Subset(data=folder, out=tmp_path / "lists" / "part.txt", per_class=2).run()
    Subset(data=folder, out=tmp_path / "links", per_class=2).run()
    listed = read_unlabelled(tmp_path / "lists" / "part.txt")
    assert [path.resolve() for path in listed.paths] == [path.resolve() for path in part.paths]
    linked = read_labelled(tmp_path / "links")
    assert linked.fingerprint == part.fingerprint == listed.fingerprint
    assert f"# fingerprint {part.fingerprint}" in (tmp_path / "lists" / "part.txt").read_text()


def test_the_printed_fingerprint_is_that_of_the_list_even_if_all_images_share_a_subfolder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one.txt"
    Subset(data=folder, out=out, classes=1).run()
    assert f"10 images, fingerprint {read_unlabelled(out).fingerprint}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "pass --per-class N or --fraction F"),
        ({"per_class": 2, "fraction": 0.5}, "pass --per-class N or --fraction F"),
        ({"fraction": 1.5}, r"--fraction is 1\.5"),
        ({"per_class": 11}, "--per-class is 11, class a has 10 images"),
        ({"classes": 9}, "--classes is 9, .* has 4 classes"),
        ({"fraction": 0.5, "seed": -1}, "--seed is -1: it must be at least 0"),
    ],
)
def test_settings_that_cannot_work_end_in_one_sentence(
    folder: Path, tmp_path: Path, settings: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Subset(data=folder, out=tmp_path / "x.txt", **settings).run()
    assert not (tmp_path / "x.txt").exists()


@pytest.fixture
def table(labelled: Callable[..., Path], tmp_path: Path) -> Path:
    """A table whose labels are not the folders of its files."""
    folder = labelled("files", per_class=6, classes=("x", "y"))
    rows = [f"{file},{'cat' if number % 3 else 'a, b'}" for number, file in enumerate(sorted(folder.rglob("*.png")))]
    (tmp_path / "all.csv").write_text("\n".join(["path,kind", *rows]).replace("a, b", '"a, b"') + "\n")
    return tmp_path / "all.csv"


def pairs(files: Source) -> set[tuple[bytes, str]]:
    """Contents and classes."""
    return {(content, files.classes[label]) for content, label in zip(files.encoded, files.labels, strict=True)}


@pytest.mark.parametrize("amount", [{"per_class": 2}, {"fraction": 0.5}, {"classes": 1}])
def test_the_labels_of_a_table_are_kept_or_the_subset_is_refused(table: Path, tmp_path: Path, amount: dict) -> None:
    columns = Columns(label="kind")
    settings = {"data": table, "columns": columns, **amount}
    part = select_images(Subset(out=tmp_path / "x", **settings))
    Subset(out=tmp_path / "lists" / "part.csv", **settings).run()
    written = read_labelled(tmp_path / "lists" / "part.csv")
    assert pairs(written) == pairs(part) <= pairs(read_labelled(table, columns=columns)) and written.labels
    for name, form in (("part.txt", "list"), ("part", "folder")):
        sentence = rf"all\.csv are not the folders of its images, so a {form} would lose them: pass --out .*part\.csv"
        with pytest.raises(ValueError, match=sentence):
            Subset(out=tmp_path / name, **settings).run()
        assert not (tmp_path / name).exists()
    Subset(out=tmp_path / "part.txt", labels=False, **settings).run()
    assert len(read_unlabelled(tmp_path / "part.txt")) == len(part)


def test_links_whose_folders_are_not_those_of_their_files_are_not_listed_by_other_classes(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / "links" / name).mkdir(parents=True)
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        (tmp_path / "links" / ("one", "two")[number % 2] / f"{number}.png").symlink_to(file)
    with pytest.raises(ValueError, match=r"links are not the folders of its images, so a list would lose them"):
        Subset(data=tmp_path / "links", out=tmp_path / "part.txt", per_class=2).run()
    Subset(data=tmp_path / "links", out=tmp_path / "part.csv", per_class=2).run()
    assert np.bincount(read_labelled(tmp_path / "part.csv").labels).tolist() == [2, 2]


def archives(folder: Path, tmp_path: Path) -> list[Path]:
    Pack(data=folder, out=tmp_path / "shards").run()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
    datasets = pytest.importorskip("datasets")
    files = read_labelled(folder)
    rows = datasets.Dataset.from_dict({"image": [*map(str, files.paths)], "label": [*files.labels]})
    rows = rows.cast_column("label", datasets.ClassLabel(names=[*files.classes]))
    rows.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    return [tmp_path / "shards", tmp_path / "images.zip", tmp_path / "saved"]


def test_a_subset_of_an_archive_is_packed_with_its_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = select_images(Subset(data=folder, out=tmp_path / "x", per_class=2, classes=3))
    for data in archives(folder, tmp_path):
        out = tmp_path / f"part-{data.stem}"
        Subset(data=data, out=out, per_class=2, classes=3).run()
        part = read_labelled(out)
        assert pairs(part) == pairs(expected) and len(part) == 6 and len(part.classes) == 3
        assert f"6 images, fingerprint {part.fingerprint}" in capsys.readouterr().out
        Subset(data=data, out=tmp_path / f"half-{data.stem}", fraction=0.5).run()
        assert len(read_labelled(tmp_path / f"half-{data.stem}")) == 20
        with pytest.raises(
            ValueError, match=r"not files of this machine, .*: pass --out .*part, a folder of tar shards"
        ):
            Subset(data=data, out=tmp_path / "part.txt", fraction=0.5).run()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["a.png", "a.png"], r"a\.png is listed twice: remove one, or pass --out part\.txt, a list"),
        (["a.png", ".b.png"], r"\.b\.png would be left out of a folder, by its name: pass --out part\.txt"),
        (["a.png", "c"], r"/c would be left out of a folder, by its name: pass --out part\.txt"),
    ],
)
def test_names_that_a_folder_of_links_would_lose_are_refused(tmp_path: Path, lines: list[str], sentence: str) -> None:
    for line in lines:
        Image.new("RGB", (8, 8)).save(tmp_path / line, "PNG")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=sentence):
        Subset(data=tmp_path / "list.txt", out=tmp_path / "part", fraction=1).run()
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("name", ["part.tsv", "part.parquet", "part.zip", "part.TAR"])
def test_a_form_that_is_not_written_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"--out is .*{name}: pass a list \(\.txt\), a table \(\.csv\) or a folder"):
        Subset(data=folder, out=tmp_path / name, per_class=1).run()


def test_an_existing_list_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match="exists: choose another --out"):
        Subset(data=folder, out=tmp_path / "x.txt", per_class=1).run()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lists no images"),
        ("# only a comment\n", "lists no images"),
        ("absent.png\n", "lists 1 files that do not exist"),
    ],
)
def test_a_list_without_images_ends_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_unlabelled(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(ValueError, match="is not a list of images"):
        read_unlabelled(tmp_path / "list.txt")
