"""Few shots, from images to results and report."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from evaluations import config_like

from stillroom.eval_ssl import (
    FewShotConfig,
    KnnConfig,
    evaluate,
    logreg,
    report,
)
from stillroom.eval_ssl.logreg import draw_shots
from stillroom.images import read_labelled
from stillroom.runs import read_results

Make = Callable[..., Path]


def test_few_shots_are_mean_and_spread_of_the_draws(config: KnnConfig) -> None:
    results = read_results(evaluate(config_like(config, FewShotConfig, shots=(1, 8), draws=3, figures=True)))
    assert list(results.metrics) == ["top1_s1", "top1_s8", "top1_s1_std", "top1_s8_std"]
    for shots, values in results.extra["draws"].items():
        assert len(values) == 3
        assert results.metrics[f"top1_s{shots}"] == pytest.approx(sum(values) / 3)
        assert results.metrics[f"top1_s{shots}_std"] == pytest.approx(float(torch.tensor(values).double().std()))
    assert results.metrics["top1_s8"] > 0.6
    assert report(config.out).splitlines()[-1].endswith("% top-1 with 8 images per class")
    assert (config.out / "figures" / "shots.png").exists()


def test_a_class_that_the_limit_leaves_out_is_named(config: KnnConfig) -> None:
    with pytest.raises(ValueError, match=r"\d classes have no training image, for instance"):
        evaluate(config_like(config, FewShotConfig, shots=(1,), limit=2))


def test_draws_of_few_shots_differ(config: KnnConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    real = logreg.few_shot
    monkeypatch.setattr(logreg, "few_shot", lambda *a, **k: seeds.append(a[5]) or real(*a, **k))
    out = evaluate(config_like(config, FewShotConfig, shots=(1, 2), draws=3, seed=4))
    assert seeds == [4, 5, 6] * 2
    labels = torch.tensor(read_labelled(config.train).labels)
    assert len({tuple(draw_shots(labels, 1, seed).tolist()) for seed in seeds}) == 3
    assert len(read_results(out).extra["draws"]["1"]) == 3
    alone = evaluate(config_like(config, FewShotConfig, shots=(1,), draws=1, out=config.out.with_name("alone")))
    assert "| - " in report(alone), "one draw has no spread"
