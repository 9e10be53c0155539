"""k-NN evaluation from images to results.json."""

import json
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
from stillroom.eval_ssl import (
    KnnConfig,
    LinearConfig,
    Point,
    Recipe,
    evaluate_knn,
    evaluate_linear,
    extract_features,
    knn_classify,
    linear_probe,
)
from stillroom.eval_ssl.cli import simreg
from stillroom.eval_ssl.evaluate import report

Make = Callable[..., Path]


def small_config(train: Path, test: Path, out: Path, **changes) -> KnnConfig:
    settings = {
        "checkpoint": "random:cifar/resnet20",
        "train": train,
        "test": test,
        "out": out,
        "k": (1, 5),
        "size": 16,
        "workers": 0,
        "device": "cpu",
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
    out = evaluate_knn(config)
    assert out == config.out
    results = read_results(out)
    assert results.task == "knn"
    assert results.protocol == ("knn/v1 vote=majority similarity=cosine feature=after size=16 crop=1 resize=short-side")
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
    assert read_results(evaluate_knn(one)).protocol == read_results(evaluate_knn(many)).protocol


def test_vote_metric_limit_and_retrieval_stand_in_protocol_and_table(config: KnnConfig) -> None:
    changes = {"vote": "weighted", "metric": "l2", "limit": 12, "retrieval": True}
    results = read_results(evaluate_knn(replace(config, **changes)))
    assert results.protocol == (
        "knn/v1 vote=weighted temperature=0.07 similarity=l2 feature=after size=16 crop=1 resize=short-side limit=12"
    )
    assert (results.datasets["train"].count, results.datasets["test"].count) == (12, 12)
    assert 0.5 < results.metrics["map"] <= 1
    assert f"mean average precision {100 * results.metrics['map']:.1f} %" in report(config.out)


def test_one_folder_is_classified_by_leaving_each_image_out(config: KnnConfig, run: Run) -> None:
    results = read_results(evaluate_knn(replace(config, test=None, k=(1, 35))))
    assert results.protocol.endswith(" leave-one-out") and results.datasets.keys() == {"train"}
    seed_everything(0)
    backbone = replace_input(build_backbone("cifar/resnet20"), size=16)
    found = extract_features(backbone, read_labelled(config.train), run, workers=0)
    predicted = knn_classify(found.features, found.labels, None, (1,))[1]
    assert results.metrics["top1_k1"] == pytest.approx(float((predicted == found.labels).float().mean()))
    assert results.metrics["top1_k35"] == 0  # of 35 others 11 are of one's own class, 12 of each other
    with pytest.raises(ValueError, match="k = 36 does not fit 35 training images"):
        evaluate_knn(replace(config, test=None, k=(36,), out=config.out.with_name("other")))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"limit": 0}, r"--limit is 0: it must be"), ({"vote": "weighted", "temperature": 0.0}, r"--temperature is 0\.0")],
)
def test_settings_that_cannot_be_are_one_sentence(config: KnnConfig, changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate_knn(replace(config, **changes))
    assert not config.out.exists()


def test_colours_are_told_apart_by_a_random_net(config: KnnConfig) -> None:
    metrics = read_results(evaluate_knn(config)).metrics
    assert all(value > 0.9 for value in metrics.values()), metrics  # chance is 1/3


def test_accuracies_are_those_of_scikit_learn_on_the_same_features(labelled: Make, tmp_path: Path, run: Run) -> None:
    classes = ("blue", "green", "red")
    train, test = labelled("train", per_class=10, classes=classes), labelled("test", per_class=8, seed=1)
    for path in sorted(train.glob("*/*"))[::3]:  # a third of the images into a wrong class, so that 1-NN errs
        path.rename(path.with_name("x" + path.name))
        wrong = classes[(classes.index(path.parent.name) + 1) % 3]
        path.with_name("x" + path.name).rename(train / wrong / f"{path.parent.name}-{path.name}")
    results = read_results(evaluate_knn(small_config(train, test, tmp_path / "run", k=(1,))))
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
        results[name] = read_results(evaluate_knn(replace(config, seed=seed, out=config.out.with_name(name))))
    first, again, other = results.values()
    assert first.metrics == again.metrics and first.checkpoint == again.checkpoint
    assert (first.seed, other.seed) == (1, 2)
    assert first.checkpoint.sha256 != other.checkpoint.sha256
    assert (first.checkpoint.path, first.checkpoint.method) == ("random:cifar/resnet20", "random")
    seed_everything(1)
    assert first.checkpoint.sha256 == weights_sha256(build_backbone("cifar/resnet20").net)


def test_a_checkpoint_is_read_as_its_manifest_says(config: KnnConfig, student: Path) -> None:
    results = read_results(evaluate_knn(replace(config, checkpoint=str(student), size=None)))
    assert "feature=before size=24 crop=1 " in results.protocol
    record = results.checkpoint
    assert (record.path, record.method) == (str(student), "kdep")
    assert record.sha256 == load_checkpoint(student)[1].weights.sha256


def test_size_crop_and_feature_point_can_be_overridden_and_stand_in_the_protocol(
    config: KnnConfig, student: Path
) -> None:
    changed = replace(config, checkpoint=str(student), size=20, crop_fraction=0.5, feature="after")
    assert "feature=after size=20 crop=0.5 " in read_results(evaluate_knn(changed)).protocol


def test_the_overrides_reach_the_features(config: KnnConfig, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[torch.Size, bool]] = {}
    forward = torch.nn.Conv2d.forward

    def watch(module: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] == 3:
            seen["images"] = images.shape[2:]
        return forward(module, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", watch)
    evaluate_knn(replace(config, checkpoint=str(student), size=20))
    assert seen["images"] == (20, 20)
    evaluate_knn(replace(config, checkpoint=str(student), size=None, out=config.out.with_name("other")))
    assert seen["images"] == (24, 24)


def test_a_name_stands_for_its_pretrained_weights(
    config: KnnConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = torchvision.models.MobileNet_V2_Weights.DEFAULT
    hub = tmp_path / "hub" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))  # torch.hub takes a file that is there for the real one
    torch.manual_seed(11)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), hub / published.url.rpartition("/")[2])
    results = read_results(evaluate_knn(replace(config, checkpoint="torchvision/mobilenet_v2", size=32)))
    assert (results.checkpoint.path, results.checkpoint.method) == ("torchvision/mobilenet_v2", "pretrained")
    torch.manual_seed(11)
    assert results.checkpoint.sha256 == weights_sha256(build_backbone("torchvision/mobilenet_v2").net)


def test_a_broken_image_is_refused_by_name_or_skipped_named_and_counted(config: KnnConfig) -> None:
    broken = [config.train / "red" / "003.png", config.test / "blue" / "001.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"red/003\.png cannot be read as an image"):
        evaluate_knn(config)
    assert not config.out.exists()
    results = read_results(evaluate_knn(replace(config, on_broken="skip")))
    assert [results.datasets[role].broken for role in ("train", "test")] == [1, 1]
    assert [sentence.split(" cannot")[0] for sentence in results.extra["broken"]] == [str(path) for path in broken]


def test_classes_that_differ_are_refused(config: KnnConfig, labelled: Make) -> None:
    test = labelled("other", per_class=1, classes=("blue", "green", "rose"))
    with pytest.raises(ValueError, match=r"differ from the training set's: missing \['red'\], extra \['rose'\]"):
        evaluate_knn(replace(config, test=test))


def test_one_class_is_refused(labelled: Make, tmp_path: Path) -> None:
    train, test = labelled("train", classes=("blue",)), labelled("test", classes=("blue",))
    with pytest.raises(ValueError, match="train holds one class, blue: there is nothing to tell apart"):
        evaluate_knn(small_config(train, test, tmp_path / "run"))


def test_an_existing_out_is_refused_and_left_alone(config: KnnConfig) -> None:
    config.out.mkdir()
    (config.out / "results.json").write_text("mine")
    with pytest.raises(ValueError, match=r"run exists: choose another --out"):
        evaluate_knn(config)
    assert (config.out / "results.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"k": ()}, "--k is empty: give at least one number of neighbours"),
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
        evaluate_knn(replace(config, **changes))
    assert not config.out.exists()
    assert "train:" not in capsys.readouterr().err  # the bar of the extraction


def test_the_report_is_a_table_and_ends_with_the_directory_and_one_number(config: KnnConfig) -> None:
    out = evaluate_knn(config)
    file = out / "results.json"
    raw = json.loads(file.read_text())
    top1, others = {"top1_k1": 0.5, "top1_k5": 0.754}, {"top5_k1": 0.5, "top5_k5": 0.9, "mrr_k1": 0.5, "mrr_k5": 0.6}
    raw["metrics"] = top1 | others
    file.write_text(json.dumps(raw))
    lines = report(out).splitlines()
    assert lines[0] == raw["protocol"]
    cells = [line.replace(" ", "").strip("|").split("|") for line in lines[1:-1]]
    assert cells[0] == ["k", "top-1%", "top-5%", "MRR%"]
    assert cells[2:] == [["1", "50.0", "50.0", "50.0"], ["5", "75.4", "90.0", "60.0"]]
    assert lines[-1] == f"{out}: 75.4 % top-1 at k = 5"


def linear_config(config: KnnConfig, **changes) -> LinearConfig:
    shared = {name: getattr(config, name) for name in ("checkpoint", "train", "test", "out", "size", "workers")}
    return LinearConfig(
        **(shared | {"device": "cpu", "epochs": 5, "lrs": (0.01, 1e-9), "weight_decays": (0.0,)} | changes)
    )


def test_a_linear_run_says_what_was_chosen_and_what_it_scores(config: KnnConfig) -> None:
    out = evaluate_linear(linear_config(config))
    results = read_results(out)
    assert results.task == "linear"
    assert results.protocol == (
        "linear/v1 feature=after size=16 crop=1 resize=short-side standardised schedule=cosine epochs=5 batch=256 "
        "lrs=0.01,1e-09 weight-decays=0 held-out=0.1"
    )
    assert results.metrics["top1"] > 0.8 and results.metrics["top5"] == 1
    assert results.extra["chosen"] == {"lr": 0.01, "weight_decay": 0.0} and len(results.extra["grid"]) == 2
    assert sum(results.extra["per_class"].values()) / 3 == pytest.approx(results.metrics["top1"])
    text = report(out)
    assert "chosen: learning rate 0.01, weight decay 0" in text and "held-out top-1 %" in text
    assert text.splitlines()[-1].startswith(f"{out}: {100 * results.metrics['top1']:.1f} % top-1, 100.0 % top-5")


def test_simregs_linear_recipe_is_one_setting(config: KnnConfig, run: Run) -> None:
    preset = simreg(checkpoint="random:cifar/resnet20", train=config.train, test=config.test, out=config.out)
    results = read_results(evaluate_linear(replace(preset, size=16, workers=0, device="cpu")))
    assert results.protocol == (
        "linear/simreg-v1 mode=cached feature=after size=16 crop=1 resize=short-side unit-length,standardised "
        "schedule=step epochs=40 batch=256 lrs=0.01 weight-decays=0.0001"
    )
    assert results.extra["grid"] == []
    seed_everything(0)
    backbone = replace_input(build_backbone("cifar/resnet20"), size=16)
    train, test = (extract_features(backbone, read_labelled(f), run, workers=0) for f in (config.train, config.test))
    recipe = Recipe(epochs=40, batch_size=256, schedule=Step(every=15, gamma=0.1))
    point = Point(lr=0.01, weight_decay=1e-4)
    probed = linear_probe(train.features, train.labels, test.features, 3, [point], recipe, unit=True)
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
def test_a_probe_that_cannot_be_is_refused_before_any_feature_is_made(
    config: KnnConfig, changes: dict, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate_linear(linear_config(config, **changes))
    assert not config.out.exists() and capsys.readouterr().err == ""
