"""Teacher features in SimReg's format, in place of a teacher's pass."""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distill_runs import losses_of, small_config
from torch import Tensor

from stillroom.backbone.cache_folder import cache_directory
from stillroom.distill import DistillConfig, Teachers, distill, resume
from stillroom.distill.config import Cache
from stillroom.distill.slots import CosineDistance, LinearHead, Raw, Svd
from stillroom.distill.teacher import FrozenTeacher
from stillroom.distill.views import FixedView
from stillroom.images import read_unlabelled
from stillroom.runs import read_results
from stillroom.runs.store import Store


@pytest.fixture
def config(unlabelled: Path, tmp_path: Path) -> DistillConfig:
    """One epoch of SimReg's method with a teacher that sees the centre crop, from a cache of float32."""
    return small_config(
        unlabelled,
        tmp_path / "run",
        alignment=Raw(),
        head=LinearHead(),
        distance=CosineDistance(),
        teacher_view=FixedView(),
        cache=Cache(views=1, dtype="float32"),
        epochs=1,
    )


@pytest.fixture
def vectors(config: DistillConfig) -> dict[str, Tensor]:
    """The teacher's own feature of each image, by file name, as a run of ours stores it."""
    distill(replace(config, out=config.out.with_name("own")))
    [store] = cache_directory("teacher-outputs").iterdir()
    values = Store(store, (96, 64), "float32", 64).values
    return {path.name: row for path, row in zip(read_unlabelled(config.data).paths, values, strict=True)}


def with_file(config: DistillConfig, content: object) -> DistillConfig:
    """The config, with these features saved as SimReg's PyTorch 1.4 saved them."""
    file = config.out.with_name("features.pth")
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return replace(config, cache=replace(config.cache, features=file))


def test_a_file_of_the_teachers_features_gives_the_run_that_the_teacher_gives(
    config: DistillConfig, vectors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    passes: list[int] = []
    forward = FrozenTeacher.forward
    monkeypatch.setattr(FrozenTeacher, "forward", lambda self, x: (passes.append(len(x)), forward(self, x))[1])
    shuffled = dict(sorted(vectors.items(), reverse=True)) | {"another.png": torch.zeros(64)}
    out = distill(with_file(config, shuffled))
    assert losses_of(out) == losses_of(config.out.with_name("own"))
    assert sum(passes) == 16  # those that the file is compared on
    [record] = read_results(out).extra["imported_features"]
    assert (record["images"], record["vectors_of_other_images"], record["compared"]) == (96, 1, 16)
    assert record["cosine_to_teacher"] == pytest.approx(1, abs=1e-5)
    assert "96 vectors imported, 1 of other images left out; to the teacher: mean cosine 1.0000 on 16" in (
        capsys.readouterr().out
    )


def test_imported_rows_are_a_cache_of_their_own_and_are_read_once(
    config: DistillConfig, vectors: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    imported = with_file(config, {name: torch.randn(64) for name in vectors})
    distill(imported)
    assert "hardly holds this teacher's features" in capsys.readouterr().err
    again = distill(replace(imported, out=config.out.with_name("again")))
    assert "vectors imported" not in capsys.readouterr().out
    assert read_results(again).extra["imported_features"][0]["cosine_to_teacher"] < 0.95
    own = distill(replace(config, out=config.out.with_name("live")))
    assert losses_of(own) == losses_of(config.out.with_name("own"))
    assert read_results(own).extra["imported_features"] == [None]


def test_vectors_are_aligned_as_the_teachers_outputs_are(config: DistillConfig, vectors: dict[str, Tensor]) -> None:
    svd = replace(config, alignment=Svd(dim=32), out=config.out.with_name("svd"))
    expected = losses_of(distill(svd))
    assert losses_of(distill(with_file(replace(svd, out=config.out), vectors))) == pytest.approx(expected, rel=1e-5)


def test_a_run_with_imported_features_resumes_from_its_cache(config: DistillConfig, vectors: dict[str, Tensor]) -> None:
    out = distill(with_file(config, vectors))
    losses = losses_of(out)
    (out / "results.json").unlink()
    shutil.rmtree(out / "state")
    assert losses_of(resume(out)) == losses
    (out / "results.json").unlink()
    with_file(config, {name: vector + 1 for name, vector in vectors.items()})
    with pytest.raises(ValueError, match=r"the features in .*features\.pth have changed since .* began"):
        resume(out)


def test_files_of_another_format_images_or_width_are_one_sentence(
    config: DistillConfig, vectors: dict[str, Tensor]
) -> None:
    names = list(vectors)
    for content, sentence in (
        (
            {name: vectors[name] for name in names[2:]},
            r"features\.pth has no vector for 2 of 96 images, the first is 0000",
        ),
        (vectors | {names[1]: torch.ones(63)}, r"holds 63 numbers for 0001\.png, the teacher's output has 64"),
        (vectors | {names[1]: torch.full((64,), torch.nan)}, r"holds numbers for 0001\.png that are not finite"),
        (torch.stack(list(vectors.values())), r"holds no dict of image file name -> tensor"),
        ({"opt": argparse.Namespace(), **vectors}, r"holds more than tensors .*argparse\.Namespace.*torch\.save"),
    ):
        with pytest.raises(ValueError, match=sentence):
            distill(with_file(config, content))
        assert not config.out.exists()


def test_two_images_of_one_file_name_are_refused(config: DistillConfig, vectors: dict[str, Tensor]) -> None:
    (config.data / "more").mkdir()
    (config.data / "more" / "0003.png").write_bytes((config.data / "0004.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 file names occur in several folders of .*, the first is 0003\.png"):
        distill(with_file(config, vectors))


@pytest.mark.parametrize(
    "changes",
    [
        {"cache": Cache(views=0)},
        {"teacher_view": small_config(Path(), Path()).teacher_view},
        {"teacher": Teachers(name=("random:cifar/resnet20", "random:cifar/resnet32"))},
    ],
)
def test_one_vector_per_image_needs_one_teacher_with_one_view(config: DistillConfig, changes: dict) -> None:
    bad = with_file(replace(config, **changes), {})
    with pytest.raises(ValueError, match=r"holds one vector per image, of one teacher: pass --cache\.views 1, teacher"):
        distill(bad)
    (config.out.with_name("features.pth")).unlink()
    with pytest.raises(ValueError, match=r"there is no .*features\.pth"):
        distill(bad)
    assert not config.out.exists()
