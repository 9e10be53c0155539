"""Cached teacher outputs: exact views, reused, resumed, never stale."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distill_runs import losses_of, small_config, start
from torch.nn.functional import cosine_similarity

from stillroom.backbone.cache_folder import cache_directory
from stillroom.distill import Students, Teachers, cache, distill
from stillroom.distill.config import Cache, Dense, Monitor
from stillroom.distill.distances import DistillationLoss
from stillroom.distill.slots import CosineDistance, KdepView, LinearHead, Raw
from stillroom.distill.student import build_optimizer
from stillroom.distill.teacher import FrozenTeacher
from stillroom.distill.views import FixedView, StrongView, Views
from stillroom.images import ImageDataset
from stillroom.runs import read_results

R20 = "cifar/resnet20"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each forward pass of a teacher."""
    counted: list[int] = []
    forward = FrozenTeacher.forward

    def count(self: FrozenTeacher, images: torch.Tensor):
        counted.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FrozenTeacher, "forward", count)
    return counted


@pytest.mark.parametrize("aligned", [True, False])
def test_cached_targets_are_those_of_the_live_teacher_on_the_same_view(
    aligned: bool, unlabelled: Path, tmp_path: Path
) -> None:
    config = small_config(unlabelled, tmp_path / "run", cache=Cache(views=2))
    if not aligned:
        config = replace(config, alignment=Raw(), head=LinearHead())
    else:
        config = replace(config, alignment=replace(config.alignment, dim=40), head=LinearHead())
    setup, supervision = start(config)
    teacher, cached = supervision.teacher, supervision.cache
    assert cached is not None and cached.aligned == aligned
    views = Views(config.view, config.teacher_view, [16], [teacher.backbone.spec.input])
    dataset = ImageDataset(setup.images.train, views, seed=config.seed, cycle=2)
    for epoch in range(4):
        pixels = torch.stack([dataset[(epoch, index)][1].pixels[views.of_teachers[0]] for index in range(20)])
        features = teacher(pixels).features
        live = supervision.targets[0](features) if aligned else features
        stored = cached.read(epoch, torch.arange(20))
        assert float(cosine_similarity(stored, live).min()) >= 0.9995
        assert torch.allclose(stored, live, rtol=2e-3, atol=2e-3)
    assert not torch.equal(cached.read(0, torch.arange(20)), cached.read(1, torch.arange(20)))


def test_at_ten_saved_states_cached_and_live_losses_agree(unlabelled: Path, tmp_path: Path) -> None:
    config = small_config(unlabelled, tmp_path / "run", cache=Cache(views=1), epochs=4, save_every=1, lr=0.02)
    setup, cached = start(config)
    live = replace(cached, cache=None)
    teacher, [student] = cached.teacher, setup.students
    sizes = [student.backbone.spec.input.size]
    views = Views(config.view, config.teacher_view, sizes, [teacher.backbone.spec.input])
    dataset = ImageDataset(setup.images.train, views, seed=config.seed, cycle=1)
    optimizer = build_optimizer(config.optimizer, [student], lr=config.lr, weight_decay=config.weight_decay)
    compute_loss = DistillationLoss(config.distance, config.loss_weight, Dense(), [1.0])
    for state in range(10):
        indices = torch.arange(32) + 6 * state
        rendered = [dataset[(state, int(index))][1] for index in indices]
        student_pixels = torch.stack([of_image.pixels[views.of_students[0]] for of_image in rendered])
        teacher_pixels = torch.stack([of_image.pixels[views.of_teachers[0]] for of_image in rendered])
        outputs = [student(student_pixels)]
        live_loss = compute_loss(outputs, [live.align(teacher(teacher_pixels).features)], [()])
        cached_loss = compute_loss(outputs, [cached.align(cached.cache.read(0, indices))], [()])
        assert cached_loss.logged["loss"].item() == pytest.approx(live_loss.logged["loss"].item(), rel=1e-3)
        live_loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_second_student_costs_no_pass_of_the_teacher(
    unlabelled: Path, tmp_path: Path, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"alignment": Raw(), "head": LinearHead(), "distance": CosineDistance(), "cache": Cache(views=2)}
    distill(small_config(unlabelled, tmp_path / "first", epochs=3, **changes))
    assert sum(passes) == 2 * 96  # and none for an alignment: cosine needs no scale
    assert "teacher cache: 2 views x 96 images x 64 float16 outputs (feature) = 0.0 MiB" in capsys.readouterr().out
    other = Students(name=("cifar/resnet32",), size=(20,))
    distill(small_config(unlabelled, tmp_path / "second", student=other, epochs=3, **changes))
    assert sum(passes) == 2 * 96
    distill(small_config(unlabelled, tmp_path / "third", epochs=3, **(changes | {"cache": Cache(views=3)})))
    assert sum(passes) == 3 * 96  # the two views that were there stay


def test_a_cached_run_is_the_same_run_when_the_cache_is_there_already(unlabelled: Path, tmp_path: Path) -> None:
    config = small_config(unlabelled, tmp_path / "first", cache=Cache(views=1))
    first = losses_of(distill(config))
    assert losses_of(distill(replace(config, out=tmp_path / "second"))) == first


def test_any_change_of_teacher_view_seed_or_files_is_another_cache(
    unlabelled: Path, tmp_path: Path, passes: list[int]
) -> None:
    changes = {"alignment": Raw(), "head": LinearHead(), "distance": CosineDistance(), "epochs": 1}
    nets = {
        "teacher": Teachers(name=("random:cifar/resnet20",), size=(8,)),
        "student": Students(name=(R20,), size=(8,)),
    }
    config = small_config(unlabelled, tmp_path / "run", cache=Cache(views=1), **changes, **nets)
    distill(config)
    changed = [
        replace(config, teacher=Teachers(name=("random:cifar/resnet20",), size=(12,))),
        replace(config, teacher=Teachers(name=("random:cifar/resnet32",), size=(8,))),
        replace(config, teacher=Teachers(name=("random:cifar/resnet20",), size=(8,), feature=("after",))),
        replace(config, view=KdepView(min_scale=0.5)),
        replace(config, teacher_view=FixedView()),
        replace(config, teacher_view=StrongView()),
        replace(config, seed=1),
        replace(config, amp="bf16"),
    ]
    for number, other in enumerate(changed):
        before = sum(passes)
        distill(replace(other, out=tmp_path / f"changed-{number}"))
        assert sum(passes) == before + 96, other
    before = sum(passes)
    picture = unlabelled / "0000.png"
    picture.write_bytes((unlabelled / "0001.png").read_bytes())
    distill(replace(config, out=tmp_path / "files"))
    assert sum(passes) == before + 96


def test_a_fill_that_was_stopped_resumes(
    unlabelled: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_BATCH_SIZE", 24)
    changes = {"alignment": Raw(), "head": LinearHead(), "distance": CosineDistance(), "epochs": 1}
    config = small_config(unlabelled, tmp_path / "run", cache=Cache(views=1), **changes)
    (unlabelled / "0050.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"0050\.png cannot be read"):
        distill(config)
    assert sum(passes) == 48
    with pytest.raises(ValueError, match=r"0050\.png cannot be read"):
        distill(replace(config, out=tmp_path / "again"))
    assert sum(passes) == 48


def test_images_that_cannot_be_read_are_skipped_in_cache_and_training(unlabelled: Path, tmp_path: Path) -> None:
    (unlabelled / "0050.png").write_bytes(b"torn")
    config = small_config(unlabelled, tmp_path / "run", cache=Cache(views=1), on_broken="skip", epochs=1)
    assert (distill(config) / "student").exists()
    assert len(list(cache_directory("teacher-outputs").iterdir())) == 1


def test_a_legacy_run_reads_images_as_they_are_stored_and_has_caches_of_its_own(
    unlabelled: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[bool] = []
    read = ImageDataset._read

    def note(self: ImageDataset, file: Path) -> object:
        stored.append(self.as_stored)
        return read(self, file)

    monkeypatch.setattr(ImageDataset, "_read", note)
    changes = {"alignment": Raw(), "head": LinearHead(), "distance": CosineDistance(), "epochs": 1}
    changes |= {"cache": Cache(views=1), "monitor": Monitor(held_out=0.0)}
    for method, as_stored in (("simreg", False), ("legacy-simreg", True)):
        stored.clear()
        results = read_results(distill(small_config(unlabelled, tmp_path / method, method=method, **changes)))
        assert set(stored) == {as_stored} and len(passes) == (4 if as_stored else 2)
        assert results.extra["images"]["exif"] == ("ignored" if as_stored else "obeyed")


def test_another_decoder_is_another_cache(
    unlabelled: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"alignment": Raw(), "head": LinearHead(), "distance": CosineDistance(), "epochs": 1}
    config = small_config(unlabelled, tmp_path / "first", cache=Cache(views=1), **changes)
    distill(config)
    monkeypatch.setattr("stillroom.images.picture.decoder", lambda: "another 1.0")
    results = read_results(distill(replace(config, out=tmp_path / "second")))
    assert sum(passes) == 2 * 96 and results.extra["images"]["decoder"] == "another 1.0"
