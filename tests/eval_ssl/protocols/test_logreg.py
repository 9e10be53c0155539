"""Logistic regression, from images to results and report."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evaluations import config_like

from stillroom.eval_ssl import (
    KnnConfig,
    LogregConfig,
    evaluate,
    report,
)
from stillroom.runs import read_results

Make = Callable[..., Path]


def test_a_logistic_regression_says_what_was_chosen_and_whether_it_converged(config: KnnConfig) -> None:
    results = read_results(evaluate(config_like(config, LogregConfig, penalties=(1e-1, 1e-3))))
    assert results.task == "logreg" and results.metrics["top1"] > 0.8
    assert results.protocol == (
        "logreg/v1 feature=after size=16 crop=1 resize=short-side dtype=float32 standardised tolerance=1e-05 "
        "iterations=1000 penalties=0.1,0.001 held-out=0.1"
    )
    assert results.extra["converged"] and len(results.extra["fits"]) == 3
    assert "| penalty | held-out top-1, % |" in report(config.out)
    cut = replace(config_like(config, LogregConfig), penalties=(1e-6,), iterations=1, out=config.out.with_name("cut"))
    assert not read_results(evaluate(cut)).extra["converged"]
    assert "not converged: the largest gradient is" in report(cut.out)
