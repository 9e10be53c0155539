"""Evaluations from images to results.json, by every protocol."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from sklearn.neighbors import KNeighborsClassifier

from stillroom.backbone import (
    Run,
    build_backbone,
    load_checkpoint,
    read_labelled,
    read_results,
    replace_input,
    save_checkpoint,
    weights_sha256,
)
from stillroom.backbone.run import seed_everything
from stillroom.backbone.schedule import Step
from stillroom.backbone.sweep import directory_name
from stillroom.eval_ssl import (
    FewShotConfig,
    KnnConfig,
    LinearConfig,
    LogregConfig,
    Point,
    Recipe,
    evaluate,
    extract_features,
    knn_classify,
    linear_probe,
    logreg,
    report,
)
from stillroom.eval_ssl.logreg import draw_shots
from stillroom.eval_ssl.presets import simreg

Make = Callable[..., Path]


def small_config(train: Path, test: Path, out: Path, **changes) -> KnnConfig:
    settings = {
        "checkpoint": ("random:cifar/resnet20",),
        "train": train,
        "test": test,
        "out": out,
        "k": (1, 5),
        "size": 16,
        "workers": 0,
        "device": "cpu",
        "figures": False,
    }
    return KnnConfig(**(settings | changes))


@pytest.fixture
def config(labelled: Make, tmp_path: Path) -> KnnConfig:
    """36 training and 18 test images of three colours."""
    train, test = labelled("train", per_class=12), labelled("test", per_class=6, seed=1)
    return small_config(train, test, tmp_path / "run")


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A checkpoint as distillation leaves it: read before the last ReLU, fed with 24 px."""
    torch.manual_seed(3)
    backbone = replace_input(build_backbone("cifar/resnet20", feature="before"), size=24)
    save_checkpoint(tmp_path / "student", backbone, method="kdep", package="stillroom-distill")
    return tmp_path / "student"


def test_results_say_what_was_measured_on_what(config: KnnConfig) -> None:
    out = evaluate(config)
    assert out == config.out
    results = read_results(out)
    assert results.task == "knn"
    assert results.protocol == (
        "knn/v1 vote=majority similarity=cosine feature=after size=16 crop=1 resize=short-side dtype=float32"
    )
    assert list(results.metrics) == ["top1_k1", "top1_k5", "top5_k1", "top5_k5", "mrr_k1", "mrr_k5"]
    train, test = (results.datasets[role] for role in ("train", "test"))
    assert (train.count, test.count, train.broken, test.broken) == (36, 18, 0, 0)
    assert (train.path, test.path) == (str(config.train), str(config.test))
    assert train.fingerprint == read_labelled(config.train).fingerprint != test.fingerprint
    assert results.extra["broken"] == [] and results.extra["classes"] == ["blue", "green", "red"]
    for k, accuracies in results.extra["per_class"].items():
        assert list(accuracies) == ["blue", "green", "red"]
        assert sum(accuracies.values()) / 3 == pytest.approx(results.metrics[f"top1_k{k}"])
    assert results.made_by.package == "stillroom-eval-ssl"
    assert results.made_by.config["k"] == [1, 5] and results.made_by.config["train"] == str(config.train)
    assert results.seconds > 0
    assert [path.name for path in out.iterdir()] == ["results.json"]


def test_the_protocol_is_the_same_for_every_k(config: KnnConfig) -> None:
    one, many = (replace(config, k=k, out=config.out.with_name(str(len(k)))) for k in ((1,), (1, 3, 7)))
    assert read_results(evaluate(one)).protocol == read_results(evaluate(many)).protocol


def test_vote_metric_limit_and_retrieval_are_in_protocol_and_table(config: KnnConfig) -> None:
    changes = {"vote": "weighted", "metric": "l2", "limit": 12, "retrieval": True}
    results = read_results(evaluate(replace(config, **changes)))
    assert results.protocol == (
        "knn/v1 vote=weighted temperature=0.07 similarity=l2 feature=after size=16 crop=1 resize=short-side "
        "dtype=float32 limit=12"
    )
    assert (results.datasets["train"].count, results.datasets["test"].count) == (12, 12)
    assert 0.5 < results.metrics["map"] <= 1
    assert f"mean average precision {100 * results.metrics['map']:.1f} %" in report(config.out)


def test_one_folder_is_classified_by_leaving_each_image_out(config: KnnConfig, run: Run) -> None:
    results = read_results(evaluate(replace(config, test=None, k=(1, 35))))
    assert results.protocol.endswith(" leave-one-out") and results.datasets.keys() == {"train"}
    seed_everything(0)
    backbone = replace_input(build_backbone("cifar/resnet20"), size=16)
    found = extract_features(backbone, read_labelled(config.train), run, workers=0)
    predicted = knn_classify(found.features, found.labels, None, (1,))[1]
    assert results.metrics["top1_k1"] == pytest.approx(float((predicted == found.labels).float().mean()))
    assert results.metrics["top1_k35"] == 0  # of 35 others 11 are of one's own class, 12 of each other
    with pytest.raises(ValueError, match="k = 36 does not fit 35 training images"):
        evaluate(replace(config, test=None, k=(36,), out=config.out.with_name("other")))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"limit": 0}, r"--limit is 0: it must be"), ({"vote": "weighted", "temperature": 0.0}, r"--temperature is 0\.0")],
)
def test_settings_that_cannot_work_are_one_sentence(config: KnnConfig, changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate(replace(config, **changes))
    assert not config.out.exists()


def test_colours_are_told_apart_by_a_random_net(config: KnnConfig) -> None:
    metrics = read_results(evaluate(config)).metrics
    assert all(value > 0.9 for value in metrics.values()), metrics  # chance is 1/3


def test_accuracies_are_those_of_scikit_learn_on_the_same_features(labelled: Make, tmp_path: Path, run: Run) -> None:
    classes = ("blue", "green", "red")
    train, test = labelled("train", per_class=10, classes=classes), labelled("test", per_class=8, seed=1)
    for path in sorted(train.glob("*/*"))[::3]:  # a third of the images into a wrong class, so that 1-NN errs
        path.rename(path.with_name("x" + path.name))
        wrong = classes[(classes.index(path.parent.name) + 1) % 3]
        path.with_name("x" + path.name).rename(train / wrong / f"{path.parent.name}-{path.name}")
    results = read_results(evaluate(small_config(train, test, tmp_path / "run", k=(1,))))
    seed_everything(0)
    backbone = replace_input(build_backbone("cifar/resnet20"), size=16)
    sets = [extract_features(backbone, read_labelled(folder), run, workers=0) for folder in (train, test)]
    theirs = KNeighborsClassifier(n_neighbors=1, metric="cosine", algorithm="brute")
    theirs.fit(sets[0].features.numpy(), sets[0].labels.numpy())
    expected = theirs.score(sets[1].features.numpy(), sets[1].labels.numpy())
    assert 0.2 < expected < 0.95
    assert results.metrics["top1_k1"] == pytest.approx(expected)


def test_a_random_net_is_named_hashed_and_the_seeds_own(config: KnnConfig) -> None:
    results = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        results[name] = read_results(evaluate(replace(config, seed=seed, out=config.out.with_name(name))))
    first, again, other = results.values()
    assert first.metrics == again.metrics and first.checkpoint == again.checkpoint
    assert (first.seed, other.seed) == (1, 2)
    assert first.checkpoint.sha256 != other.checkpoint.sha256
    assert (first.checkpoint.path, first.checkpoint.method) == ("random:cifar/resnet20", "random")
    seed_everything(1)
    assert first.checkpoint.sha256 == weights_sha256(build_backbone("cifar/resnet20").net)


def test_a_checkpoint_is_read_as_its_manifest_says(config: KnnConfig, student: Path) -> None:
    results = read_results(evaluate(replace(config, checkpoint=(str(student),), size=None)))
    assert "feature=before size=24 crop=1 " in results.protocol
    record = results.checkpoint
    assert (record.path, record.method) == (str(student), "kdep")
    assert record.sha256 == load_checkpoint(student)[1].weights.sha256


def test_size_crop_and_feature_point_can_be_overridden_and_are_in_the_protocol(
    config: KnnConfig, student: Path
) -> None:
    changed = replace(config, checkpoint=(str(student),), size=20, crop_fraction=0.5, feature="after")
    assert "feature=after size=20 crop=0.5 " in read_results(evaluate(changed)).protocol


def test_the_overrides_reach_the_features(config: KnnConfig, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[torch.Size, bool]] = {}
    forward = torch.nn.Conv2d.forward

    def watch(module: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] == 3:
            seen["images"] = images.shape[2:]
        return forward(module, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", watch)
    evaluate(replace(config, checkpoint=(str(student),), size=20))
    assert seen["images"] == (20, 20)
    evaluate(replace(config, checkpoint=(str(student),), size=None, out=config.out.with_name("other")))
    assert seen["images"] == (24, 24)


def test_a_name_means_its_pretrained_weights(
    config: KnnConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = torchvision.models.MobileNet_V2_Weights.DEFAULT
    hub = tmp_path / "hub" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))  # torch.hub takes a file that is there for the real one
    torch.manual_seed(11)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), hub / published.url.rpartition("/")[2])
    results = read_results(evaluate(replace(config, checkpoint=("torchvision/mobilenet_v2",), size=32)))
    assert (results.checkpoint.path, results.checkpoint.method) == ("torchvision/mobilenet_v2", "pretrained")
    torch.manual_seed(11)
    assert results.checkpoint.sha256 == weights_sha256(build_backbone("torchvision/mobilenet_v2").net)


def test_a_broken_image_is_refused_by_name_or_skipped_named_and_counted(config: KnnConfig) -> None:
    broken = [config.train / "red" / "003.png", config.test / "blue" / "001.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"red/003\.png cannot be read as an image"):
        evaluate(config)
    assert not config.out.exists()
    results = read_results(evaluate(replace(config, on_broken="skip")))
    assert [results.datasets[role].broken for role in ("train", "test")] == [1, 1]
    assert [sentence.split(" cannot")[0] for sentence in results.extra["broken"]] == [str(path) for path in broken]


def test_classes_that_differ_are_refused(config: KnnConfig, labelled: Make) -> None:
    test = labelled("other", per_class=1, classes=("blue", "green", "rose"))
    with pytest.raises(ValueError, match=r"differ from the training set's: missing \['red'\], extra \['rose'\]"):
        evaluate(replace(config, test=test))


def test_one_class_is_refused(labelled: Make, tmp_path: Path) -> None:
    train, test = labelled("train", classes=("blue",)), labelled("test", classes=("blue",))
    with pytest.raises(ValueError, match="train holds one class, blue: there is nothing to tell apart"):
        evaluate(small_config(train, test, tmp_path / "run"))


def test_an_existing_out_is_refused_and_left_alone(config: KnnConfig) -> None:
    config.out.mkdir()
    (config.out / "results.json").write_text("mine")
    with pytest.raises(ValueError, match=r"run exists: choose another --out"):
        evaluate(config)
    assert (config.out / "results.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"k": ()}, "--k is empty: pass at least one number of neighbours"),
        ({"k": (1, 0)}, "k = 0 does not fit 36 training images: choose k from 1 to 36"),
        ({"k": (1, 37)}, "k = 37 does not fit 36 training images"),
        ({"batch_size": 0}, "--batch-size is 0: it must be at least 1"),
        ({"size": 0}, "input size is 0 px"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_extracted(
    config: KnnConfig, changes: dict, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=text):
        evaluate(replace(config, **changes))
    assert not config.out.exists()
    assert "train:" not in capsys.readouterr().err  # the bar of the extraction


def test_the_report_is_a_table_and_ends_with_the_directory_and_one_number(config: KnnConfig) -> None:
    out = evaluate(config)
    file = out / "results.json"
    raw = json.loads(file.read_text())
    top1, others = {"top1_k1": 0.5, "top1_k5": 0.754}, {"top5_k1": 0.5, "top5_k5": 0.9, "mrr_k1": 0.5, "mrr_k5": 0.6}
    raw["metrics"] = top1 | others
    file.write_text(json.dumps(raw))
    lines = report(out).splitlines()
    assert lines[0] == raw["protocol"]
    cells = [line.replace(" ", "").strip("|").split("|") for line in lines[1:-1]]
    assert cells[0] == ["k", "k-NNtop-1,%", "k-NNtop-5,%", "meanreciprocalrank,%"]
    assert cells[2:] == [["1", "50.0", "50.0", "50.0"], ["5", "75.4", "90.0", "60.0"]]
    assert lines[-1] == f"{out}: 75.4 % top-1 at k = 5"


def linear_config(config: KnnConfig, **changes) -> LinearConfig:
    shared = {
        name: getattr(config, name) for name in ("checkpoint", "train", "test", "out", "size", "workers", "figures")
    }
    return LinearConfig(
        **(shared | {"device": "cpu", "epochs": 5, "lrs": (0.01, 1e-9), "weight_decays": (0.0,)} | changes)
    )


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


def others(config: KnnConfig, kind: type, **changes):
    names = ("checkpoint", "train", "test", "out", "size", "workers", "figures", "device")
    return kind(**({name: getattr(config, name) for name in names} | changes))


def test_a_logistic_regression_says_what_was_chosen_and_whether_it_converged(config: KnnConfig) -> None:
    results = read_results(evaluate(others(config, LogregConfig, penalties=(1e-1, 1e-3))))
    assert results.task == "logreg" and results.metrics["top1"] > 0.8
    assert results.protocol == (
        "logreg/v1 feature=after size=16 crop=1 resize=short-side dtype=float32 standardised tolerance=1e-05 "
        "iterations=1000 penalties=0.1,0.001 held-out=0.1"
    )
    assert results.extra["converged"] and len(results.extra["fits"]) == 3
    assert "| penalty | held-out top-1, % |" in report(config.out)
    cut = replace(others(config, LogregConfig), penalties=(1e-6,), iterations=1, out=config.out.with_name("cut"))
    assert not read_results(evaluate(cut)).extra["converged"]
    assert "not converged: the largest gradient is" in report(cut.out)


def test_few_shots_are_mean_and_spread_of_the_draws(config: KnnConfig) -> None:
    results = read_results(evaluate(others(config, FewShotConfig, shots=(1, 8), draws=3, figures=True)))
    assert list(results.metrics) == ["top1_s1", "top1_s8", "top1_s1_std", "top1_s8_std"]
    for shots, values in results.extra["draws"].items():
        assert len(values) == 3
        assert results.metrics[f"top1_s{shots}"] == pytest.approx(sum(values) / 3)
        assert results.metrics[f"top1_s{shots}_std"] == pytest.approx(float(torch.tensor(values).double().std()))
    assert results.metrics["top1_s8"] > 0.6
    assert report(config.out).splitlines()[-1].endswith("% top-1 with 8 images per class")
    assert (config.out / "figures" / "shots.png").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        (FewShotConfig, {"shots": (1, 13)}, "class blue has 12 training images: 13 shots need more"),
        (FewShotConfig, {"shots": (0,)}, r"--shots is \[0\]: pass numbers"),
        (FewShotConfig, {"draws": 0}, "--draws is 0"),
        (FewShotConfig, {"inverse_penalty": 0.0}, r"--inverse-penalty is 0\.0"),
        (LogregConfig, {"penalties": (-1.0,)}, "--penalties holds -1"),
        (LogregConfig, {"iterations": 0}, "--iterations is 0"),
    ],
)
def test_impossible_regressions_are_refused_before_any_feature_is_extracted(
    config: KnnConfig, kind: type, changes: dict, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate(others(config, kind, **changes))
    assert not config.out.exists() and capsys.readouterr().err == ""


def test_without_k_the_standard_ones_that_fit_are_used(config: KnnConfig) -> None:
    results = read_results(evaluate(replace(config, k=None)))
    assert [name for name in results.metrics if name.startswith("top1")] == [f"top1_k{k}" for k in (1, 5, 10, 20)]
    assert report(config.out).splitlines()[-1].endswith("% top-1 at k = 20")


def test_several_checkpoints_give_one_table_and_done_ones_are_kept(
    config: KnnConfig, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = replace(config, checkpoint=("random:cifar/resnet20", str(student)), k=(1, 20))
    out = evaluate(several)
    runs = [directory_name(name) for name in several.checkpoint]
    assert sorted(runs) == sorted(path.name for path in out.iterdir() if path.is_dir())
    assert runs[0].startswith("random-cifar-resnet20-")
    table = json.loads((out / "table.json").read_text())
    assert table["task"] == "knn" and list(table["rows"]) == list(several.checkpoint)
    for run, (name, row) in zip(runs, table["rows"].items(), strict=True):
        alone = read_results(evaluate(replace(several, checkpoint=(name,), out=out.with_name(run))))
        assert row["metrics"] == alone.metrics == read_results(out / run).metrics
        assert row["protocol"] == alone.protocol and row["run"] == run
    text = report(out)
    assert "| random:cifar/resnet20 " in text and text.splitlines()[-1].endswith(" % k-NN top-1, k = 20")
    assert "| k-NN top-1, k = 1, % | k-NN top-1, k = 20, % |" in text
    before = (out / runs[0] / "results.json").stat().st_mtime_ns
    (out / runs[1] / "results.json").unlink()
    evaluate(replace(several, workers=1, memory_gib=0.5))  # what changes no number may change
    assert (out / runs[0] / "results.json").stat().st_mtime_ns == before
    assert (out / runs[1] / "results.json").exists()
    with pytest.raises(ValueError, match=r"is a run with other settings \(k\): choose another --out"):
        evaluate(replace(several, k=(1,)))


def test_figures_are_written_beside_the_metrics(config: KnnConfig) -> None:
    evaluate(replace(config, figures=True))
    assert sorted(path.name for path in (config.out / "figures").iterdir()) == [
        "confusion.png", "embedding.png", "neighbours.png",
    ]  # fmt: skip
    alone = replace(config, figures=True, test=None, out=config.out.with_name("alone"))
    assert (evaluate(alone) / "figures" / "neighbours.png").exists()
    linear = linear_config(config, figures=True, out=config.out.with_name("linear"))
    assert [path.name for path in (evaluate(linear) / "figures").iterdir()] == ["confusion.png"]


def test_what_was_measured_on_other_weights_or_images_is_not_kept(config: KnnConfig, student: Path) -> None:
    several = replace(config, checkpoint=("random:cifar/resnet20", str(student)))
    evaluate(several)
    torch.manual_seed(4)
    shutil.rmtree(student)
    save_checkpoint(student, build_backbone("cifar/resnet20"), method="kdep", package="stillroom-distill")
    with pytest.raises(ValueError, match=r"student-\w+ was measured on other weights than .*student has now"):
        evaluate(several)
    (config.train / "red" / "000.png").unlink()
    with pytest.raises(ValueError, match=r"resnet20-\w+ was measured on other images than there are now"):
        evaluate(several)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"checkpoint": ()}, "--checkpoint is empty"),
        ({"checkpoint": ("a", "b", "a")}, "--checkpoint names a twice: name each once"),
        ({"seed": -1}, "--seed is -1: it must be at least 0"),
        ({"memory_gib": 0.0}, r"--memory-gib is 0\.0: it must be above 0"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"test": None, "limit": 1}, "leave-one-out needs two images, .*train has one"),
        ({"embedding": "umap", "figures": True}, "--embedding umap needs 20 images, got 18"),
    ],
)
def test_odd_settings_are_one_sentence_before_any_feature_is_extracted(
    config: KnnConfig, changes: dict, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate(replace(config, **changes))
    assert not config.out.exists() and capsys.readouterr().err == ""


def test_several_checkpoints_do_not_go_into_the_directory_of_one(config: KnnConfig, student: Path) -> None:
    evaluate(config)
    with pytest.raises(ValueError, match="run exists: choose another --out"):
        evaluate(replace(config, checkpoint=("random:cifar/resnet20", str(student))))


@pytest.mark.parametrize("kind", [LinearConfig, LogregConfig])
def test_a_class_with_one_image_is_named_before_any_feature_is_extracted(
    config: KnnConfig, kind: type, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((config.train / "green").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="class green has one training image: there is none to hold out"):
        evaluate(others(config, kind))
    assert capsys.readouterr().err == ""


def test_a_class_that_the_limit_leaves_out_is_named(config: KnnConfig) -> None:
    with pytest.raises(ValueError, match=r"\d classes have no training image, for instance"):
        evaluate(others(config, FewShotConfig, shots=(1,), limit=2))


def test_names_of_classes_are_drawn_as_they_are(labelled: Make, tmp_path: Path) -> None:
    train = labelled("train", per_class=4, classes=("_a$x_$b", "c"))
    out = evaluate(small_config(train, train, tmp_path / "run", k=(1,), figures=True))
    assert len(list((out / "figures").iterdir())) == 3


def test_top_5_of_a_classifier_is_a_count(labelled: Make, tmp_path: Path) -> None:
    """Untrained, every class scores the same, and the answers are the classes in their order."""
    classes = ("blue", "green", "grey", "lime", "pink", "red", "teal", "white")
    train, test = labelled("many", 2, classes), labelled("many-test", 1, classes, seed=1)
    config = small_config(train, test, tmp_path / "run")
    out = evaluate(linear_config(config, lrs=(0.0,), weight_decays=(0.0,), epochs=1))
    assert read_results(out).metrics == {"top1": 1 / 8, "top5": 5 / 8}


def test_draws_of_few_shots_differ(config: KnnConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    real = logreg.few_shot
    monkeypatch.setattr(logreg, "few_shot", lambda *a, **k: seeds.append(a[5]) or real(*a, **k))
    out = evaluate(others(config, FewShotConfig, shots=(1, 2), draws=3, seed=4))
    assert seeds == [4, 5, 6] * 2
    labels = torch.tensor(read_labelled(config.train).labels)
    assert len({tuple(draw_shots(labels, 1, seed).tolist()) for seed in seeds}) == 3
    assert len(read_results(out).extra["draws"]["1"]) == 3
    alone = evaluate(others(config, FewShotConfig, shots=(1,), draws=1, out=config.out.with_name("alone")))
    assert "| - " in report(alone), "one draw has no spread"


def test_missing_figures_are_drawn_when_they_are_requested(config: KnnConfig, student: Path) -> None:
    several = replace(config, checkpoint=(*config.checkpoint, str(student)), figures=False)
    out = evaluate(several)
    runs = [path for path in out.iterdir() if path.is_dir()]
    assert len(runs) == 2 and not any((run / "figures").exists() for run in runs)
    numbers = [read_results(run).metrics for run in runs]
    evaluate(replace(several, figures=True))
    assert all((run / "figures" / "neighbours.png").exists() for run in runs)
    assert [read_results(run).metrics for run in runs] == numbers


def test_of_several_checkpoints_the_one_that_fails_is_named(config: KnnConfig) -> None:
    with pytest.raises(ValueError, match=r"^random:cifar/resnet21: there is no backbone named"):
        evaluate(replace(config, checkpoint=(*config.checkpoint, "random:cifar/resnet21")))


def test_a_probe_that_diverged_has_no_accuracy(config: KnnConfig) -> None:
    out = evaluate(linear_config(config, lrs=(1e38, 0.1), weight_decays=(1.0,), epochs=2))
    grid = read_results(out).extra["grid"]
    assert [point["held_out_top1"] is None for point in grid] == [True, False]
    assert "diverged" in report(out)


@pytest.mark.parametrize("limit", [3, 7])
def test_a_limit_balances_the_classes(config: KnnConfig, limit: int) -> None:
    train, _ = replace(config, limit=limit).read_images()
    counts = torch.tensor(train.labels).bincount(minlength=3).tolist()
    assert sum(counts) == limit and max(counts) - min(counts) <= 1
    assert train.paths != replace(config, limit=limit, seed=5).read_images()[0].paths


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        (LogregConfig, {"penalties": (float("nan"),)}, "--penalties holds nan"),
        (LogregConfig, {"tolerance": float("nan")}, "--tolerance is nan: it must be above 0, and finite"),
        (LogregConfig, {"tolerance": -1.0}, "--tolerance is -1.0"),
        (FewShotConfig, {"inverse_penalty": float("nan")}, "--inverse-penalty is nan"),
        (KnnConfig, {"memory_gib": float("inf")}, "--memory-gib is inf: it must be above 0, and finite"),
    ],
)
def test_numbers_that_are_nan_or_infinite_are_refused(config: KnnConfig, kind: type, changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        evaluate(others(config, kind, **changes))
    assert not config.out.exists()
