"""Presets hold the recipes of the papers, and legacy ones the quirks of the released code."""

import inspect
from pathlib import Path

import pytest

from stillroom.distill import DistillConfig
from stillroom.distill.config import UNIONS
from stillroom.distill.presets import PRESETS
from stillroom.distill.slots import (
    CosineDistance,
    KlDivergence,
    LinearHead,
    MlpHead,
    Mse,
    NoHead,
    Raw,
    Sgd,
    Svd,
    SvdPts,
)
from stillroom.distill.views import KdepView, SameView, WeakView
from stillroom.runs.configs import config_from_json, config_to_json
from stillroom.runs.schedule import Cosine, Step

GIVEN = {"teacher": ("t",), "student": ("s",), "data": Path("d"), "out": Path("o")}


def made(name: str) -> DistillConfig:
    return PRESETS[name](**GIVEN)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_lab_note_with_its_own_name_and_survives_the_json(name: str) -> None:
    config = made(name)
    assert inspect.getdoc(PRESETS[name])
    assert name == "smoke" or config.method == name
    assert config_from_json(config_to_json(config, UNIONS), DistillConfig, UNIONS) == config


# name: lr, weight decay, batch, epochs, loss weight: REFERENCE of the two papers' released recipes
ROWS = {
    "kdep-ms-r18": (0.3, 5e-4, 512, 90, 3.0),
    "kdep-sp-r18": (0.3, 5e-4, 512, 90, 3.0),
    "kdep-ms-mnv2": (0.1, 5e-4, 512, 90, 3.0),
    "legacy-kdep-ms-r18": (0.3, 5e-4, 512, 90, 3.0),
    "legacy-kdep-sp-r18": (0.3, 5e-4, 512, 90, 20.0),
    "legacy-kdep-ms-mnv2": (0.1, 5e-4, 512, 90, 3.0),
    "simreg-r18": (0.05, 1e-4, 256, 130, 1.0),
    "simreg-mnv2": (0.05, 1e-4, 256, 130, 1.0),
    "simreg-r50": (0.05, 1e-4, 256, 130, 1.0),
    "legacy-simreg-r18": (0.05, 1e-4, 256, 130, 1.0),
    "legacy-simreg-mnv2": (0.05, 1e-4, 256, 130, 1.0),
    "legacy-simreg-r50": (0.05, 1e-4, 256, 130, 1.0),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_published_recipes_are_kept(name: str) -> None:
    config = made(name)
    ours = (config.lr, config.weight_decay, config.batch_size, config.epochs, config.loss_weight)
    assert ours == ROWS[name]
    assert config.optimizer == Sgd(momentum=0.9, nesterov=False)
    kdep = "kdep" in name
    assert isinstance(config.schedule, Step if kdep else Cosine) and config.schedule.warmup_epochs == 0
    assert config.view == (KdepView() if kdep else WeakView()) and config.teacher_view == SameView()
    assert config.head == (NoHead() if kdep else MlpHead(layers=4))
    assert config.alignment == (SvdPts(temperature=0.1, exponent=3.0) if kdep else Raw())
    assert {net.feature for net in (*config.teacher.nets(), *config.student.nets())} == {"before" if kdep else "after"}


def test_the_students_and_teachers_of_the_rows_have_their_defaults() -> None:
    rest = {"data": Path("d"), "out": Path("o")}
    supervised = PRESETS["kdep-sp-r18"](**rest)
    assert (supervised.teacher.name, supervised.student.name) == (("torchvision/resnet50",), ("torchvision/resnet18",))
    assert PRESETS["kdep-ms-mnv2"](teacher=("t",), **rest).student.name == ("torchvision/mobilenet_v2",)
    assert PRESETS["simreg-r50"](teacher=("t",), **rest).student.name == ("torchvision/resnet50",)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("legacy-kdep")])
def test_legacy_kdep_feeds_rgb_fits_on_augmented_views_and_leaves_the_target_its_scale(name: str) -> None:
    legacy, plain = made(name), made(name.removeprefix("legacy-"))
    assert [net.channel_order for net in legacy.teacher.nets()] == ["rgb"]
    assert [net.channel_order for net in plain.teacher.nets()] == ["own"]
    assert (legacy.alignment_view, plain.alignment_view) == ("training", "evaluation")
    assert (legacy.distance, plain.distance) == (Mse(unit_target=False), Mse(unit_target=True))
    assert legacy.monitor.held_out == 0 < plain.monitor.held_out


def test_legacy_simreg_changes_its_rate_once_per_epoch() -> None:
    legacy = made("legacy-simreg-r18").schedule
    assert legacy.factor(1.0, 130) == legacy.factor(1.99, 130) != legacy.factor(2.0, 130)
    plain = made("simreg-r18").schedule
    assert plain.factor(1.0, 130) != plain.factor(1.99, 130)


def test_the_comparisons_are_other_variants_of_the_same_slots() -> None:
    assert (made("conv1x1").alignment, made("conv1x1").head) == (Raw(), LinearHead(batch_norm="after"))
    assert made("logits").distance == KlDivergence(temperature=4.0)
    assert [net.output for net in made("logits").teacher.nets()] == ["logits"]
    assert made("svd").alignment == Svd() and made("simreg").distance == CosineDistance()
