"""The monitor: collapse, held-out distance, k-NN, best and last student, early stop."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import tyro
from distill_runs import small_config, weights_of

from stillroom.backbone import Backbone, BackboneSpec
from stillroom.backbone.manifest import read_manifest
from stillroom.distill import Students, distill, resume
from stillroom.distill.cli import command_type
from stillroom.distill.config import Monitor
from stillroom.distill.data import nothing_held_out, split_held_out
from stillroom.distill.monitor import (
    Best,
    collapse_warning,
    effective_rank,
    first_judged_epoch,
    learning_warnings,
    relative_spread,
)
from stillroom.distill.results import summary
from stillroom.distill.slots import AdamW, LinearHead, Raw, Svd, SvdPts
from stillroom.distill.state import TrainState
from stillroom.images import read_unlabelled
from stillroom.runs import Run, read_results
from stillroom.runs.progress import Progress
from stillroom.runs.run_files import STATE, read_metrics
from twins import assert_bit_equal


def test_effective_rank_counts_equal_directions_and_weighs_unequal_ones() -> None:
    torch.manual_seed(0)
    three = torch.linalg.qr(torch.randn(200, 3).double())[0]
    three = (three - three.mean(dim=0)) @ torch.linalg.qr(torch.randn(10, 3).double())[0].T
    assert effective_rank(three.float()) == pytest.approx(3, rel=0.01)
    uneven = torch.randn(500, 6) * torch.tensor([9.0, 3, 1, 1, 0.1, 0])
    values = np.linalg.svd((uneven - uneven.mean(dim=0)).double().numpy(), compute_uv=False)
    shares = values / values.sum()
    shares = shares[shares > 0]
    assert effective_rank(uneven) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_relative_spread_is_std_over_root_mean_square() -> None:
    features = torch.randn(5000, 4) + 3.0
    assert relative_spread(features) == pytest.approx(1 / np.sqrt(10), rel=0.05)
    assert relative_spread(torch.ones(5, 4)) == 0


@pytest.mark.parametrize(
    ("features", "collapsed"),
    [
        (torch.randn(64, 8), False),
        (torch.randn(64, 8) + 5.0, False),
        (torch.ones(64, 8) + 1e-4 * torch.randn(64, 8), True),
        (torch.randn(64, 1) * torch.ones(1, 8), True),
        (torch.zeros(64, 8), True),
    ],
)
def test_collapse_is_distinguished_from_health(features: torch.Tensor, collapsed: bool) -> None:
    warning = collapse_warning(features)
    assert (warning is not None) == collapsed
    assert not collapsed or "the student collapses" in str(warning)


@pytest.mark.slow  # a hundred steps
def test_a_planted_collapse_is_flagged_within_200_steps_once(
    unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher that says the same of every image, and a decay that pulls the student there: 102 steps, two checks."""

    class Constant(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linspace(-1, 1, 64).expand(len(images), -1)

    teacher = Backbone.from_module(Constant(), BackboneSpec(name="module/Constant", dim=64, pre_activation=True))
    changes = {"alignment": Raw(), "lr": 0.1, "loss_weight": 10.0, "weight_decay": 1.0}
    distill(small_config(unlabelled, tmp_path / "run", epochs=17, batch_size=16, log_every=500, **changes), teacher)
    printed = capsys.readouterr().err
    assert printed.count("warning: the student collapses") == 1


def test_a_healthy_run_is_not_flagged(unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill(small_config(unlabelled, tmp_path / "run"))
    assert "collapses" not in capsys.readouterr().err


def test_held_out_images_are_seeded_disjoint_and_at_most_512(unlabelled: Path) -> None:
    files = read_unlabelled(unlabelled)
    trained, held_out = split_held_out(files, 0.25, seed=3)
    assert held_out is not None and (len(trained), len(held_out)) == (72, 24)
    assert sorted([*trained.paths, *held_out.paths]) == list(files.paths)
    again, other = (split_held_out(files, 0.25, seed=seed)[1] for seed in (3, 4))
    assert again is not None and again.paths == held_out.paths
    assert other is not None and other.paths != held_out.paths
    assert split_held_out(files, 0.02, seed=3) == (files, None)
    repeated = files.subset([*range(len(files))] * 600)
    assert len(split_held_out(repeated, 0.02, seed=0)[1] or ()) == 512
    with pytest.raises(ValueError, match=r"--monitor\.held-out is 0\.9: it must lie in \[0, 0\.5\]"):
        Monitor(held_out=0.9)


def test_held_out_distance_and_ranks_are_logged_and_fall_with_training(unlabelled: Path, tmp_path: Path) -> None:
    monitor = Monitor(held_out=0.25, every=2)
    config = small_config(
        unlabelled, tmp_path / "run", epochs=12, alignment=Svd(dim=64), loss_weight=10.0, monitor=monitor, batch_size=24
    )
    out = distill(config)
    measured = [row for row in read_metrics(out) if "held_out_loss" in row]
    assert [row["step"] for row in measured] == [6, 12, 18, 24, 30, 36]
    assert min(row["held_out_loss"] for row in measured[1:]) < measured[0]["held_out_loss"]
    assert {"effective_rank", "relative_spread"} <= measured[0].keys()
    results = read_results(out)
    assert results.metrics["held_out_loss"] == measured[-1]["held_out_loss"]
    assert (results.datasets["train"].count, results.datasets["held_out"].count) == (72, 24)


def test_measuring_changes_no_bit_of_the_student(unlabelled: Path, tmp_path: Path) -> None:
    often = small_config(unlabelled, tmp_path / "often", monitor=Monitor(held_out=0.25, every=1), batch_size=24)
    rarely = replace(often, out=tmp_path / "rarely", monitor=Monitor(held_out=0.25, every=100))
    first, second = (weights_of(distill(config) / "student") for config in (often, rarely))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_best_student_is_kept_beside_the_last_and_a_plateau_stops_the_run(
    unlabelled: Path, labelled: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = labelled("monitored", per_class=2)
    accuracies = iter([0.3, 0.5, 0.4, 0.5, 0.4, 0.9])
    calls: list[tuple[Backbone, Path, Run]] = []

    def knn(*arguments) -> dict[str, float]:
        calls.append(arguments)
        return {"knn20": next(accuracies), "knn1": 0.0}

    monitor = Monitor(knn=folder, every=1, patience=3)
    config = small_config(unlabelled, tmp_path / "run", epochs=9, monitor=monitor, optimizer=AdamW(), lr=1e-3)
    out = distill(config, knn=knn)
    assert len(calls) == 5 and calls[0][1] == folder and isinstance(calls[0][0], Backbone)
    assert "stopped at step 15: no better measurement since step 6" in capsys.readouterr().err
    results = read_results(out)
    assert results.extra["best"] == {"score": 0.5, "step": 6, "stale": 3}
    assert (results.extra["steps"], results.extra["student_step"]) == (15, 6)
    rows = read_metrics(out)
    at_best = next(row for row in rows if row["step"] == 6 and "loss" in row)
    assert (results.metrics["monitor_knn20"], results.metrics["loss"]) == (0.5, at_best["loss"])
    best, outcome = (weights_of(out / name) for name in ("student-best", "student"))
    assert_bit_equal(best, outcome)
    assert results.checkpoint.sha256 == read_manifest(out / "student-best" / "manifest.json").weights.sha256
    assert summary(out) == f"{out}: 50.0 % knn20, the best student, of step 6"


def test_a_run_that_ends_at_its_last_step_keeps_its_last_student_and_names_a_better_one(
    unlabelled: Path, labelled: Callable[..., Path], tmp_path: Path
) -> None:
    """The same run as without a monitor, to the bit, although its patience ends with it."""
    accuracies = iter([0.3, 0.5, 0.4])
    monitor = Monitor(knn=labelled("monitored", per_class=2), every=1, patience=1)
    config = small_config(unlabelled, tmp_path / "run", epochs=3, monitor=monitor, optimizer=AdamW(), lr=1e-3)
    out = distill(config, knn=lambda *_: {"knn20": next(accuracies)})
    results = read_results(out)
    assert (results.extra["steps"], results.extra["student_step"]) == (9, 9)
    assert results.metrics["monitor_knn20"] == 0.4
    assert summary(out) == f"{out}: 40.0 % knn20, student-best, of step 6: 50.0 % knn20"
    plain = distill(replace(config, out=tmp_path / "plain", monitor=Monitor()))
    assert_bit_equal(weights_of(out / "student"), weights_of(plain / "student"))


def test_best_counts_what_is_not_better_as_stale() -> None:
    best = Best()
    is_best = [best.update(score, step) for step, score in enumerate([1.0, 1.0, 2.0, 0.0, 1.0])]
    assert is_best == [True, False, True, False, False]
    assert (best.score, best.step, best.stale) == (2.0, 2, 2)


def test_knn_without_its_package_or_folder_is_one_sentence(unlabelled: Path, tmp_path: Path) -> None:
    config = small_config(unlabelled, tmp_path / "run", monitor=Monitor(knn=unlabelled))
    with pytest.raises(ValueError, match=r"--monitor\.knn needs stillroom-eval-ssl"):
        distill(config)
    for folder, sentence in ((tmp_path / "absent", "there is no folder"), (unlabelled, "holds no class folders")):
        config = small_config(unlabelled, tmp_path / "run", monitor=Monitor(knn=folder))
        with pytest.raises(ValueError, match=sentence):
            distill(config, knn=lambda *_: {})
    with pytest.raises(ValueError, match=r"--monitor\.patience has no measurements"):
        distill(small_config(unlabelled, tmp_path / "run", monitor=Monitor(patience=2)))
    assert not (tmp_path / "run").exists()


def test_a_run_that_learns_nothing_warns_and_names_the_flags(
    unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate of 0 the student's weights stay what they are."""
    out = distill(small_config(unlabelled, tmp_path / "run", lr=0.0, monitor=Monitor(held_out=0.25), batch_size=24))
    printed = capsys.readouterr().err
    assert "warning: the student learned almost nothing: its agreement" in printed
    assert len(read_results(out).extra["warnings"]) == 1


def flags_of(warning: str) -> list[str]:
    return re.findall(r"--[a-z.-]+[a-z]", warning)


@pytest.mark.parametrize("alignment", [SvdPts(), Svd(), Raw()], ids=["pts", "svd", "raw"])
@pytest.mark.parametrize("method", ["kdep", "auto-kdep", "auto-simreg"])
def test_the_command_takes_every_flag_that_the_warning_names(
    alignment: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # tyro.MISSING replaces values of all types
    config = small_config(Path("d"), Path("o"), alignment=alignment, method=method)
    (warning,) = learning_warnings(config, {"neighbour_agreement": 0.01}, {"neighbour_agreement": 0.0})
    assert {"--lr", "--loss-weight", "--epochs", "--batch-size"} == set(flags_of(warning))
    words = [word for flag in flags_of(warning) for word in (flag, "1")]
    is_auto, has_pts = method.startswith("auto"), isinstance(alignment, SvdPts)
    assert ("alignment:svd" in warning) == (has_pts and not is_auto)
    assert ("the command `svd`" in warning) == (has_pts and is_auto)
    words += ["alignment:svd"] if "alignment:svd" in warning else []
    command = "svd" if "the command `svd`" in warning else method.partition("-")[0]
    nets = ["--teacher", "t", "--student", "s", "--data", "d", "--out", "o"]
    parsed = tyro.cli(command_type(), args=[command, *nets, *words], config=(tyro.conf.CascadeSubcommandArgs,))
    assert (parsed.lr, parsed.loss_weight, parsed.epochs, parsed.batch_size) == (1, 1, 1, 1)


def test_agreement_below_chance_is_no_percentage() -> None:
    config = small_config(Path("d"), Path("o"))
    (warning,) = learning_warnings(config, {"neighbour_agreement": -0.094}, {"neighbour_agreement": 0.02})
    assert "is no better than chance; before the first step it was 2.0 %" in warning and "-9" not in warning


def test_a_run_that_0_2_began_is_resumed_and_not_judged(unlabelled: Path, tmp_path: Path) -> None:
    """Its state knows neither what was measured before the first step nor the seconds."""
    out = distill(
        small_config(unlabelled, tmp_path / "run", lr=0.0, monitor=Monitor(held_out=0.25), batch_size=24, save_every=1)
    )
    (out / "results.json").unlink()
    state = torch.load(out / STATE, weights_only=True)
    torch.save({name: value for name, value in state.items() if name not in ("untrained", "seconds")}, out / STATE)
    resumed = read_results(resume(out))
    assert (resumed.extra["untrained"], resumed.extra["warnings"]) == ({}, [])
    assert "neighbour_agreement" in resumed.metrics


@pytest.mark.slow
def test_a_student_that_becomes_its_teacher_is_not_warned_of(
    unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher is a fixed net whose feature is the mean colour of nine regions: learned within 60 steps."""
    torch.manual_seed(0)
    regions = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(3), torch.nn.Flatten())
    teacher = Backbone.from_module(regions, BackboneSpec(name="module/Regions", dim=27, pre_activation=True))
    student = Students(name=("cifar/resnet20",), size=(16,), feature=("after",))
    changes = {"student": student, "alignment": Raw(), "head": LinearHead(), "batch_size": 24}
    config = small_config(unlabelled, tmp_path / "run", epochs=20, monitor=Monitor(held_out=0.25), **changes)
    results = read_results(distill(config, teacher))
    assert results.metrics["neighbour_agreement"] > results.extra["untrained"]["neighbour_agreement"] + 0.02
    assert results.extra["warnings"] == [] and "learned almost nothing" not in capsys.readouterr().err


def test_a_run_is_judged_after_a_tenth_but_not_before_200_steps() -> None:
    assert [first_judged_epoch(*run) for run in ((90, 250), (15, 145), (6, 126), (2, 3))] == [9, 2, 2, 2]


class Clock:
    """A clock that every step of a run takes a second of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(Progress, "seconds", property(lambda _: self.seconds))
        advance = TrainState.advance

        def slow(state: TrainState, *arguments: Any, **settings: Any) -> None:
            advance(state, *arguments, **settings)
            self.seconds += 1.0

        monkeypatch.setattr(TrainState, "advance", slow)


def test_slow_steps_end_within_a_step_of_their_hours_and_before_the_first_log_line(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock(monkeypatch)
    monitor = Monitor(held_out=0.25, hours=7 / 3600, every=1)
    out = distill(
        small_config(unlabelled, tmp_path / "run", epochs=9, monitor=monitor, log_every=50, lr=0.0, batch_size=24)
    )
    results = read_results(out)
    assert results.extra["steps"] == 7
    assert math.isfinite(results.metrics["loss"]) and "NaN" not in (out / "results.json").read_text()
    assert [row["step"] for row in read_metrics(out) if "loss" in row] == [7]
    printed = capsys.readouterr().err
    assert printed.count(f"warning: {results.extra['warnings'][0]}") == 1
    assert "stopped at step 7: --monitor.hours" in printed


def test_a_run_that_patience_stops_before_the_first_log_line_has_a_loss_and_its_warning(
    unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor(held_out=0.25, every=1, patience=1)
    out = distill(
        small_config(unlabelled, tmp_path / "run", epochs=90, monitor=monitor, log_every=5000, lr=0.0, batch_size=24)
    )
    results = read_results(out)
    assert results.extra["steps"] < 90 * 3 and math.isfinite(results.metrics["loss"])
    assert f"warning: {results.extra['warnings'][0]}" in capsys.readouterr().err


def test_too_few_images_to_hold_out_are_pointed_out(
    unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = distill(small_config(unlabelled, tmp_path / "run", epochs=1))
    assert "neighbour_agreement" not in read_results(out).metrics
    note = "2 % of 96 images is fewer than 8: the student is not measured on held-out images; pass --monitor.held-out"
    assert f"{note} 0.09 to hold out 8" in capsys.readouterr().err
    monitor = Monitor(held_out=0.09)
    out = distill(small_config(unlabelled, tmp_path / "measured", epochs=1, monitor=monitor))
    assert "neighbour_agreement" in read_results(out).metrics and "pass" not in capsys.readouterr().err
    assert "pass" not in nothing_held_out(14, 0.02)


def test_hours_end_a_run_with_its_student_and_resuming_adds_none(
    unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = distill(small_config(unlabelled, tmp_path / "run", monitor=Monitor(held_out=0.0, hours=1e-6)))
    assert "stopped at step 1: --monitor.hours 1e-06 are over" in capsys.readouterr().err
    assert read_results(out).extra["steps"] == 1
    (out / "results.json").unlink()
    assert read_results(resume(out)).extra["steps"] == 1
    with pytest.raises(ValueError, match=r"--monitor\.hours is 0\.0: it must be above 0"):
        distill(small_config(unlabelled, tmp_path / "none", monitor=Monitor(hours=0.0)))
