"""Linear probes, from images to results and report."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from evaluations import linear_config, small_config

from stillroom.backbone import build_backbone, replace_input
from stillroom.backbone.seeds import seed_everything
from stillroom.eval_ssl import (
    KnnConfig,
    Point,
    Recipe,
    evaluate,
    extract_features,
    linear_probe,
    report,
)
from stillroom.eval_ssl.presets import simreg
from stillroom.images import read_labelled
from stillroom.runs import Run, read_results
from stillroom.runs.schedule import Step

Make = Callable[..., Path]


def test_a_linear_run_says_what_was_chosen_and_what_it_scores(config: KnnConfig) -> None:
    out = evaluate(linear_config(config))
    results = read_results(out)
    assert results.task == "linear"
    assert results.protocol == (
        "linear/v1 mode=cached feature=after size=16 crop=1 resize=short-side dtype=float32 standardised "
        "schedule=cosine(warmup_epochs=0.0,change_every=step) epochs=5 batch=256 "
        "lrs=0.01,1e-09 weight-decays=0 held-out=0.1"
    )
    assert results.metrics["top1"] > 0.8 and results.metrics["top5"] == 1
    assert (
        results.extra["chosen"] == {"lr": 0.01, "weight_decay": 0.0, "reading": "pooled", "unit": False}
        and len(results.extra["grid"]) == 2
    )
    assert sum(results.extra["per_class"].values()) / 3 == pytest.approx(results.metrics["top1"])
    text = report(out)
    assert "chosen: learning rate 0.01, weight decay 0.0" in text and "held-out top-1, %" in text
    assert text.splitlines()[-1].startswith(f"{out}: {100 * results.metrics['top1']:.1f} % top-1, 100.0 % top-5")


def test_simregs_linear_recipe_is_one_setting(config: KnnConfig, run: Run) -> None:
    preset = simreg(checkpoint=("random:cifar/resnet20",), train=config.train, test=config.test, out=config.out)
    assert preset.schedule == Step(every=15, gamma=0.1)
    results = read_results(evaluate(replace(preset, size=16, workers=0, device="cpu")))
    assert results.protocol == (
        "linear/simreg-v1 mode=cached feature=after size=16 crop=1 resize=short-side dtype=float32 "
        "unit-length,standardised "
        "schedule=step(every=15,gamma=0.1,warmup_epochs=0.0) epochs=40 batch=256 lrs=0.01 weight-decays=0.0001"
    )
    assert results.extra["grid"] == []
    seed_everything(0)
    backbone = replace_input(build_backbone("cifar/resnet20"), size=16)
    train, test = (extract_features(backbone, read_labelled(f), run, workers=0) for f in (config.train, config.test))
    recipe = Recipe(epochs=40, batch_size=256, schedule=Step(every=15, gamma=0.1))
    point = Point(lr=0.01, weight_decay=1e-4, unit=True)
    probed = linear_probe(train.features, train.labels, test.features, 3, [point], recipe)
    accuracy = float((probed.logits.argmax(dim=1) == test.labels).double().mean())
    assert results.metrics["top1"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lrs": ()}, "the grid is empty"),
        ({"epochs": 0}, r"--epochs is 0: it must be at least 1"),
        ({"probe_batch_size": 0}, r"--probe-batch-size is 0"),
        ({"at_once": -1}, r"--at-once is -1"),
        ({"held_out": 1.5}, r"--held-out is 1\.5"),
    ],
)
def test_an_impossible_probe_is_refused_before_any_feature_is_extracted(
    config: KnnConfig, changes: dict, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate(linear_config(config, **changes))
    assert not config.out.exists() and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mode": "live"}, r"--mode live trains one setting, got 2"),
        ({"more_levels": (7,)}, r"there is no level 7: cifar/resnet20 has 3 levels"),
    ],
)
def test_levels_and_modes_that_cannot_work_are_one_sentence(config: KnnConfig, changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate(linear_config(config, **changes))
    assert not config.out.exists()


def test_levels_and_unit_length_are_choices_of_the_grid(config: KnnConfig) -> None:
    results = read_results(evaluate(linear_config(config, more_levels=(-1, 0), unit=(False, True), lrs=(0.1,))))
    tried = [(point["reading"], point["unit"]) for point in results.extra["grid"]]
    assert tried == [(name, unit) for name in ("pooled", "level-1", "level-3") for unit in (False, True)]
    assert " readings=pooled,level-1,level-3 standardised|unit-length,standardised " in results.protocol
    best = max(results.extra["grid"], key=lambda point: point["held_out_top1"])
    assert results.extra["chosen"] == {key: value for key, value in best.items() if key != "held_out_top1"}
    assert "| feature source " in report(config.out)


def test_simregs_live_mode_differs_from_the_cached_one_and_says_so(config: KnnConfig) -> None:
    preset = simreg(checkpoint=("random:cifar/resnet20",), train=config.train, test=config.test, out=config.out)
    preset = replace(preset, size=16, workers=0, device="cpu", epochs=2, figures=False)
    cached = read_results(evaluate(preset))
    live = read_results(evaluate(replace(preset, mode="live", out=config.out.with_name("live"))))
    assert live.protocol == cached.protocol.replace("mode=cached", "mode=live")
    assert live.metrics["top1"] > 1 / 3


def test_top_5_of_a_classifier_is_a_count(labelled: Make, tmp_path: Path) -> None:
    """Untrained, every class scores the same, and the answers are the classes in their order."""
    classes = ("blue", "green", "grey", "lime", "pink", "red", "teal", "white")
    train, test = labelled("many", 2, classes), labelled("many-test", 1, classes, seed=1)
    config = small_config(train, test, tmp_path / "run")
    out = evaluate(linear_config(config, lrs=(0.0,), weight_decays=(0.0,), epochs=1))
    assert read_results(out).metrics == {"top1": 1 / 8, "top5": 5 / 8}


def test_a_probe_that_diverged_has_no_accuracy(config: KnnConfig) -> None:
    out = evaluate(linear_config(config, lrs=(1e38, 0.1), weight_decays=(1.0,), epochs=2))
    grid = read_results(out).extra["grid"]
    assert [point["held_out_top1"] is None for point in grid] == [True, False]
    assert "diverged" in report(out)
