"""The life cycle that all protocols share: what is refused, written, kept and compared."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from evaluations import config_like, linear_config, small_config

from stillroom.backbone import build_backbone, load_checkpoint, save_checkpoint, weights_sha256
from stillroom.backbone.seeds import seed_everything
from stillroom.eval_ssl import (
    FewShotConfig,
    KnnConfig,
    LinearConfig,
    LogregConfig,
    evaluate,
    report,
)
from stillroom.images import read_labelled
from stillroom.runs import read_results
from stillroom.runs.sweep import directory_name

Make = Callable[..., Path]


def test_results_say_what_was_measured_on_what(config: KnnConfig) -> None:
    out = evaluate(config)
    assert out == config.out
    results = read_results(out)
    assert results.task == "knn"
    assert results.protocol == (
        "knn/v1 vote=majority similarity=cosine feature=after size=16 crop=1 resize=short-side dtype=float32"
    )
    in_bf16 = read_results(evaluate(replace(config, amp="bf16", out=out.with_name("bf16"))))
    assert in_bf16.protocol == results.protocol.replace("float32", "bf16")
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


def test_hidden_copies_are_left_out_and_shared_images_counted(
    config: KnnConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Jupyter leaves them: copies of training images in a hidden folder of the test set."""
    hidden = config.test / "red" / ".ipynb_checkpoints"
    hidden.mkdir()
    for name in ("000.png", "001.png"):
        shutil.copy(config.train / "red" / name, hidden / name)
    shutil.copy(config.train / "red" / "002.png", config.test / "red" / "same.png")
    results = read_results(evaluate(config))
    train, test = (results.datasets[role] for role in ("train", "test"))
    assert (train.count, test.count) == (36, 19)
    assert (train.left_out, test.left_out) == ({}, {"hidden": 2})
    assert (train.in_train, test.in_train) == (None, 1)
    printed = capsys.readouterr().err.splitlines()
    assert printed.count(f"left out of {config.test}: 2 hidden (red/.ipynb_checkpoints)") == 1
    assert f"warning: 1 of 19 images of {config.test} are training images too, byte for byte" in printed


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
    with pytest.raises(ValueError, match="train holds one class, blue: a classifier needs at least two"):
        evaluate(small_config(train, test, tmp_path / "run"))


def test_an_existing_out_is_refused_and_left_alone(config: KnnConfig) -> None:
    config.out.mkdir()
    (config.out / "results.json").write_text("mine")
    with pytest.raises(ValueError, match=r"run exists: choose another --out, or pass --if-exists resume to keep it"):
        evaluate(config)
    assert (config.out / "results.json").read_text() == "mine"
    (config.out / "results.json").unlink()
    with pytest.raises(ValueError, match=r"run exists and is not an evaluation \(it has no results.json\): choose"):
        evaluate(replace(config, if_exists="resume"))


def test_a_repeated_evaluation_is_kept_if_nothing_changed(config: KnnConfig) -> None:
    resuming = replace(config, if_exists="resume")
    before = (evaluate(resuming) / "results.json").stat().st_mtime_ns
    evaluate(replace(resuming, workers=1))
    assert (config.out / "results.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"run is a run with other settings \(k\): choose another --out"):
        evaluate(replace(resuming, k=(1,)))
    (config.train / "red" / "000.png").unlink()
    with pytest.raises(ValueError, match="run was measured on other images than there are now"):
        evaluate(resuming)


def test_jobs_evaluate_once_and_a_repeated_command_keeps_what_they_did(config: KnnConfig, student: Path) -> None:
    pytest.importorskip("submitit")
    jobs = replace(config, checkpoint=("random:cifar/resnet20", str(student)), executor="submitit")
    jobs = replace(jobs, executor_options=("cluster=debug",))
    files = [evaluate(jobs) / directory_name(name) / "results.json" for name in jobs.checkpoint]
    before = [file.stat().st_mtime_ns for file in files]
    evaluate(jobs)
    assert [file.stat().st_mtime_ns for file in files] == before and (config.out / "table.json").exists()
    evaluate(replace(jobs, executor="local", executor_options=(), out=config.out.with_name("here")))
    there, here = ((out / "table.json").read_text() for out in (config.out, config.out.with_name("here")))
    assert json.loads(there)["rows"] == json.loads(here)["rows"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"k": ()}, "--k is empty: pass at least one number of neighbours"),
        ({"k": (1, 0)}, "k = 0 does not fit 36 training images: choose k from 1 to 36"),
        ({"k": (1, 37)}, "k = 37 does not fit 36 training images"),
        ({"batch_size": 0}, "--batch-size is 0: it must be at least 1"),
        ({"workers": -3}, "--workers is -3: it must be at least 0"),
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
        evaluate(config_like(config, kind, **changes))
    assert not config.out.exists() and capsys.readouterr().err == ""


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
        "confusion.png",
        "embedding.png",
        "neighbours.png",
    ]
    alone = replace(config, figures=True, test=None, out=config.out.with_name("alone"))
    assert (evaluate(alone) / "figures" / "neighbours.png").exists()
    linear = linear_config(config, figures=True, out=config.out.with_name("linear"))
    assert [path.name for path in (evaluate(linear) / "figures").iterdir()] == ["confusion.png"]


def test_what_was_measured_on_other_weights_or_images_is_not_kept(config: KnnConfig, student: Path) -> None:
    several = replace(config, checkpoint=("random:cifar/resnet20", str(student)))
    evaluate(several)
    content = json.loads((student / "manifest.json").read_text())
    (student / "manifest.json").write_text(json.dumps(content | {"input": content["input"] | {"std": [1, 1, 1]}}))
    with pytest.raises(ValueError, match=r"the input settings of .*student have changed since .*student-\w+ began"):
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
        ({"checkpoint": ("a", "b", "a")}, "--checkpoint lists a twice: pass it once"),
        ({"seed": -1}, "--seed is -1: it must be at least 0"),
        ({"memory_gib": 0.0}, r"--memory-gib is 0\.0: it must be above 0"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"test": None, "limit": 1}, "leave-one-out needs two images, .*train has one"),
        pytest.param(  # umap-learn compiles when it is imported
            {"embedding": "umap", "figures": True},
            "--embedding umap needs 20 images, got 18",
            marks=pytest.mark.slow,
        ),
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
        evaluate(config_like(config, kind))
    assert capsys.readouterr().err == ""


def test_missing_figures_are_drawn_when_they_are_requested(config: KnnConfig, student: Path) -> None:
    several = replace(config, checkpoint=(*config.checkpoint, str(student)), figures=False)
    out = evaluate(several)
    runs = [path for path in out.iterdir() if path.is_dir()]
    assert len(runs) == 2 and not any((run / "figures").exists() for run in runs)
    numbers = [read_results(run).metrics for run in runs]
    evaluate(replace(several, figures=True))
    assert all((run / "figures" / "neighbours.png").exists() for run in runs)
    assert [read_results(run).metrics for run in runs] == numbers


def test_figures_of_other_settings_are_refused_and_replace_nothing(config: KnnConfig, student: Path) -> None:
    several = replace(config, checkpoint=(*config.checkpoint, str(student)), figures=False)
    out = evaluate(several)
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    with pytest.raises(ValueError, match=r"is a run with other settings \(k\): choose another --out"):
        evaluate(replace(several, figures=True, k=(1,)))
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before


def test_of_several_checkpoints_the_one_that_fails_is_named(config: KnnConfig) -> None:
    with pytest.raises(ValueError, match=r"^random:cifar/resnet21: there is no backbone named") as caught:
        evaluate(replace(config, checkpoint=(*config.checkpoint, "random:cifar/resnet21")))
    assert caught.traceback[-1].name == "open_net", "the error itself, so that a bug would keep its traceback"


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
        evaluate(config_like(config, kind, **changes))
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"checkpoint": ("random:timm/vit_tiny_patch16_224",)},
            "no images of 40 x 40 px .*: pass another --size; .* 32 and 48",
        ),
        ({"out": Path("/dev/null/run")}, "/dev/null/run cannot be created: /dev/null is not a folder"),
    ],
)
def test_a_size_and_an_output_that_cannot_work_are_refused_before_any_feature(
    config: KnnConfig, changes: dict, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillroom.eval_ssl.evaluation.extract_features", None)
    with pytest.raises(ValueError, match=sentence):
        evaluate(replace(config, size=40, **changes))
