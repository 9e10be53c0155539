"""`auto`: the table, the flags that override it, and the runs it makes of few, odd and small images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from commands import run_main
from stillroom.distill.auto import build_config, fit_hours, held_out_fraction, median_short_side, plan
from stillroom.distill.auto_config import AutoConfig
from stillroom.distill.cli import main
from stillroom.distill.recipe import Workload, cached_views, choose_settings, explain
from stillroom.distill.slots import WeakView
from stillroom.images import read_unlabelled
from stillroom.runs import Run, read_results

WORK = Workload(
    num_images=9280,
    held_out=0.02,
    num_held_out=189,
    short_side=128,
    student_dim=64,
    student_size=32,
    teacher_dim=1280,
    device="cpu",
    processes=1,
    cores=2,
    bf16=True,
    free_bytes=10**10,
)


def auto_config(**flags: object) -> AutoConfig:
    return AutoConfig(teacher=("t",), student=("s",), data=Path("d"), out=Path("o"), **flags)


def chosen(work: Workload, **flags: object) -> dict[str, object]:
    return {name: choice.value for name, choice in choose_settings(auto_config(**flags), work).items()}


def test_the_table_of_ten_thousand_images_on_a_cpu_is_the_study_of_methods() -> None:
    assert chosen(WORK) == {
        "batch_size": 64, "epochs": 15, "lr": 1.0, "loss_weight": 0.3, "warmup_epochs": 0.0, "min_scale": 0.35,
        "amp": "bf16", "workers": 1, "cache_views": 4, "held_out": 0.02, "every": 1, "patience": 5,
    }  # fmt: skip


def test_on_a_gpu_many_images_get_the_papers_recipe() -> None:
    work = replace(WORK, num_images=128_000, device="cuda", cores=16, student_dim=512)
    values = chosen(work)
    assert (values["batch_size"], values["epochs"], values["lr"], values["loss_weight"]) == (512, 90, 0.3, 3.0)
    assert (values["min_scale"], values["workers"], values["cache_views"]) == (0.08, 16, 0)


def test_on_a_gpu_simreg_gets_its_own_papers_recipe_and_not_kdeps() -> None:
    work = replace(WORK, num_images=1_280_000, device="cuda", cores=16)
    config = auto_config(method="simreg")
    made = build_config(config, work, choose_settings(config, work))
    assert (made.batch_size, made.epochs, made.lr, made.loss_weight) == (256, 130, 0.05, 1.0)
    assert (made.weight_decay, made.view) == (1e-4, WeakView(min_scale=0.2))


def test_a_batch_is_shared_evenly_by_the_processes() -> None:
    assert chosen(replace(WORK, num_images=182, processes=2))["batch_size"] == 44
    assert chosen(replace(WORK, num_images=9280, processes=3))["batch_size"] == 63


@pytest.mark.parametrize(("dim", "weight"), [(64, 0.3), (512, 2.4), (1280, 6.0)])
def test_the_loss_weight_grows_with_the_students_width(dim: int, weight: float) -> None:
    assert chosen(replace(WORK, student_dim=dim))["loss_weight"] == pytest.approx(weight)


def test_steps_stay_the_same_with_fewer_images_and_an_epoch_has_four_at_least() -> None:
    values = chosen(replace(WORK, num_images=45))
    assert (values["batch_size"], values["epochs"]) == (11, 550)
    assert values["amp"] == "bf16" and chosen(replace(WORK, bf16=False))["amp"] == "none"


def test_views_are_cached_where_they_fit_and_are_reused() -> None:
    assert cached_views(WORK, epochs=15) == 4
    assert cached_views(WORK, epochs=2000) == 40
    assert cached_views(WORK, epochs=7) == 0
    assert cached_views(replace(WORK, free_bytes=10**8), epochs=15) == 0


@pytest.mark.parametrize(("held_out", "patience"), [(8, 15), (20, 9), (63, 6), (64, 5), (512, 5), (0, 0)])
def test_patience_is_longer_where_few_images_are_held_out(held_out: int, patience: int) -> None:
    work = replace(WORK, num_held_out=held_out)
    assert chosen(work)["patience"] == patience
    assert chosen(work, knn=Path("labelled"))["patience"] == 5
    assert chosen(work, patience=2)["patience"] == 2


def test_what_is_no_row_of_the_table_is_printed_below_it() -> None:
    printed = {m: explain(m, WORK, choose_settings(auto_config(method=m), WORK)) for m in ("kdep", "simreg")}
    assert "target: 64 components of an SVD of the teacher's feature, then PTS; no head" in printed["kdep"]
    assert "through a 4-layer MLP" in printed["simreg"]
    for flag in ("--monitor.held-out", "--monitor.every", "--monitor.patience"):
        assert flag in printed["kdep"] and flag in printed["simreg"]
    assert "under 8 epochs the teacher runs in every step" in explain(
        "kdep", WORK, choose_settings(auto_config(epochs=7), WORK)
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--batch-size 0", "--batch-size is 0: it must be at least 1"),
        ("--batch-size -4", "--batch-size is -4: it must be at least 1"),
        ("--epochs 0", "--epochs is 0: it must be at least 1"),
        ("--view.min-scale 2", "--view.min-scale is 2.0: it must lie in (0, 1]"),
        ("--cache.views -1", "--cache.views is -1: it must be at least 0"),
        ("--student.size 0", "--student.size holds [0]: it must be at least 1"),
        ("--teacher.size -3", "--teacher.size holds [-3]: it must be at least 1"),
        ("--workers -1", "--workers is -1: it must be at least 0"),
        ("--seed -1", "--seed is -1: it must be at least 0"),
        ("--lr -1", "--lr is -1.0: it must be at least 0"),
        ("--loss-weight -1", "--loss-weight is -1.0: it must be at least 0"),
        ("--schedule.warmup-epochs -1", "--schedule.warmup-epochs is -1.0: it must be at least 0"),
        ("--monitor.held-out 0.6", "--monitor.held-out is 0.6: it must lie in [0, 0.5]"),
        ("--monitor.every 0", "--monitor.every is 0: it must be at least 1"),
        ("--monitor.patience -1", "--monitor.patience is -1: it must be at least 0"),
        ("--hours 0", "--hours is 0.0: it must be above 0"),
        ("--hours inf", "--hours is inf: it must be above 0, and finite"),
    ],
)
def test_a_bad_value_is_refused_before_anything_is_read(
    words: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no folder of images, and neither net exists."""
    commands = [("auto", words)]
    if "hours" not in words:
        commands.append(("kdep", words))
    for command, line in commands:
        paths = ("--data", str(tmp_path / "absent"), "--out", str(tmp_path / "run"))
        with pytest.raises(SystemExit) as stop:
            run_main(main, monkeypatch, command, "--teacher", "t", "--student", "s", *paths, *line.split())
        assert stop.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"error: {sentence}") and printed.count("\n") == 1


def test_a_flag_overrides_the_table_and_the_settings_derived_from_it() -> None:
    values = chosen(WORK, batch_size=32, lr=0.5)
    assert (values["batch_size"], values["lr"], values["epochs"]) == (32, 0.5, 8)
    printed = explain("kdep", WORK, choose_settings(auto_config(batch_size=32), WORK))
    assert "set by its flag" in printed and "--batch-size" in printed and "--cache.views" in printed


def test_huge_and_tiny_images_are_pointed_out() -> None:
    assert "shrink them once" in explain("kdep", replace(WORK, short_side=3000), {})
    assert "--student.size 64 is cheaper" in explain("kdep", replace(WORK, short_side=64, student_size=224), {})


@pytest.mark.parametrize(("images", "held_out"), [(16, 8), (50, 8), (200, 20), (1000, 64), (10_000, 200)])
def test_a_part_is_held_out_of_every_folder(images: int, held_out: int) -> None:
    assert round(held_out_fraction(images) * images) == held_out


NETS = ("--teacher", "random:cifar/resnet32", "--student", "cifar/resnet20", "--device", "cpu")
FAST = ("--epochs", "2", "--workers", "0", "--student.size", "16", "--teacher.size", "16", "--amp", "none")


def test_a_run_prints_its_choices_and_writes_them_into_its_config(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run_main(main, monkeypatch, "auto", *NETS, *FAST, "--data", str(unlabelled), "--out", str(out))
    printed = capsys.readouterr().out
    assert "| --lr" in printed and "best of the pilots" in printed
    results = read_results(out)
    config = results.made_by.config
    assert results.protocol == "auto-kdep/v1"
    assert (config["lr"], config["epochs"], config["view"]["min_scale"]) == (1.0, 2, 0.35)
    assert "neighbour_agreement" in results.metrics and "neighbour_agreement" in results.extra["untrained"]


def test_fifty_grey_images_run_without_svd_which_they_cannot_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    for index in range(50):
        Image.effect_noise((20 + index, 24), 60).save(folder / f"{index}.png")
    run_main(main, monkeypatch, "auto", *NETS, *FAST, "--data", str(folder), "--out", str(tmp_path / "run"))
    assert "42 images of a 64-d feature do not determine an SVD of 64 components" in capsys.readouterr().out
    config = read_results(tmp_path / "run").made_by.config
    assert (config["alignment"]["kind"], config["head"]["kind"]) == ("Raw", "LinearHead")


def test_simreg_is_run_by_the_same_table(unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ("--data", str(unlabelled), "--out", str(tmp_path / "run"))
    run_main(main, monkeypatch, "auto", "--method", "simreg", *NETS, *FAST, *paths)
    config = read_results(tmp_path / "run").made_by.config
    assert (config["method"], config["head"]["kind"], config["loss_weight"]) == ("auto-simreg", "MlpHead", 0.3)


def test_hours_shorten_a_run_by_its_measured_speed_and_too_few_are_refused(unlabelled: Path, tmp_path: Path) -> None:
    config = replace(
        auto_config(teacher_size=16, student_size=16, workers=0, amp="none", device="cpu", batch_size=16),
        teacher=("random:cifar/resnet20",),
        student=("cifar/resnet20",),
        data=unlabelled,
        out=tmp_path / "run",
    )
    assert plan(config).epochs > plan(replace(config, hours=60 / 3600)).epochs >= 1
    assert plan(replace(config, hours=60 / 3600)).monitor.hours == 60 / 3600
    with pytest.raises(ValueError, match=r"--hours 1e-06 is too short: an epoch takes"):
        plan(replace(config, hours=1e-6))


def test_too_few_and_unreadable_images_are_one_sentence(unlabelled: Path, tmp_path: Path) -> None:
    config = replace(auto_config(), teacher=("random:cifar/resnet20",), student=("cifar/resnet20",), device="cpu")
    few = tmp_path / "few.txt"
    few.write_text("".join(f"{path}\n" for path in sorted(unlabelled.iterdir())[:15]))
    with pytest.raises(ValueError, match=r"few\.txt holds 15 images: a run needs at least 16"):
        plan(replace(config, data=few))
    for path in unlabelled.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of the sampled images of .* can be read, the first is .*\.png"):
        plan(replace(config, data=unlabelled))


def test_hours_are_for_one_process(unlabelled: Path) -> None:
    run = Run(device=torch.device("cpu"), world_size=2)
    planned = build_config(auto_config(), WORK, choose_settings(auto_config(), WORK))
    with pytest.raises(ValueError, match="--hours measures the speed of one process: under torchrun pass --epochs"):
        fit_hours(planned, read_unlabelled(unlabelled), 1.0, run)


@pytest.mark.parametrize("content", [b"P6 4 99999999999 255\n", b"P6 4 4 0\n", b"", b"\x89PNG\r\n\x1a\n\0"])
def test_the_median_side_leaves_out_damaged_images(tmp_path: Path, content: bytes) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    (tmp_path / "c.ppm").write_bytes(content)
    assert median_short_side(read_unlabelled(tmp_path)) == 20


def test_a_run_that_exists_goes_on_by_the_same_flags_only(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ("--data", str(unlabelled), "--out", str(tmp_path / "run"), "--if-exists", "resume")
    run_main(main, monkeypatch, "auto", *NETS, *FAST, *paths)
    run_main(main, monkeypatch, "auto", *NETS, *FAST, *paths)  # it is finished, and kept
    capsys.readouterr()
    for flags, names in (
        (("--seed", "3", "--lr", "7"), "lr, seed"),
        (("--method", "simreg"), "method"),
        (("--student.size", "24"), "student.size"),
    ):
        with pytest.raises(SystemExit):
            run_main(main, monkeypatch, "auto", *NETS, *FAST, *paths, *flags)
        assert f"is a run with other settings ({names}): choose another --out" in capsys.readouterr().err
