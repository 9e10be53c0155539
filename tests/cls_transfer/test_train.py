"""Classification training, from images to checkpoint and results."""

import copy
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import distributed
from torchvision.transforms import v2

from stillroom.backbone import (
    Backbone,
    InputSpec,
    Licence,
    Normalize,
    build_backbone,
    load_checkpoint,
    load_heads,
    replace_input,
    save_checkpoint,
)
from stillroom.cls_transfer import Classifier, ClassifyConfig, finetune, record, resume, train
from stillroom.cls_transfer.augment import TrainingView, build_mixing
from stillroom.cls_transfer.data import read_sets
from stillroom.cls_transfer.initial import build_model
from stillroom.cls_transfer.metrics import Predictions
from stillroom.cls_transfer.model import parameters_by_level
from stillroom.cls_transfer.presets import PRESETS
from stillroom.cls_transfer.record import protocol, summary
from stillroom.cls_transfer.state import TrainState
from stillroom.images import EvaluationView, Source, read_labelled
from stillroom.images.loaders import EvaluationBatches, TrainingBatches
from stillroom.runs import Results, Run, RunDirectory, read_results
from stillroom.runs.schedule import Cosine, Step
from twins import assert_bit_equal, in_a_process

Make = Callable[..., Path]


def small_config(train: Path, test: Path, out: Path, **changes) -> ClassifyConfig:
    settings = {
        "checkpoint": ("random:cifar/resnet20",),
        "train": train,
        "test": test,
        "out": out,
        "size": 16,
        "min_scale": 0.35,
        "epochs": 1,
        "batch_size": 12,
        "lrs": (0.05,),
        "held_out": 0.0,
        "log_every": 1,
        "save_every": 2,
        "workers": 0,
        "device": "cpu",
    }
    return ClassifyConfig(**(settings | changes))


@pytest.fixture
def config(labelled: Make, tmp_path: Path) -> ClassifyConfig:
    """36 training and 18 test images of three colours: three steps an epoch."""
    train, test = labelled("train", per_class=12), labelled("test", per_class=6, seed=1)
    return small_config(train, test, tmp_path / "run")


def save_student(path: Path, licence: Licence | None = None) -> Backbone:
    """A checkpoint as distillation leaves it: read before the last ReLU, fed with 24 px, statistics not at 0 and 1."""
    torch.manual_seed(3)
    backbone = replace_input(build_backbone("cifar/resnet20", feature="before"), size=24)
    backbone.train()(torch.randn(8, 3, 24, 24))
    if licence is not None:
        backbone.spec = replace(backbone.spec, licence=licence)
    save_checkpoint(path, backbone, method="kdep", package="stillroom-distill")
    return backbone


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Backbone and classifier of a finished run."""
    return load_file(out / "checkpoint" / "model.safetensors") | load_heads(out / "checkpoint", "classifier")


def metrics_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def break_image(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_a_run_leaves_checkpoint_classifier_logs_and_results(config: ClassifyConfig) -> None:
    out = finetune(replace(config, epochs=2, data_licence="CC-BY-NC-4.0"))
    assert out == config.out
    backbone, manifest = load_checkpoint(out / "checkpoint")
    assert backbone.spec.input.size == 16 and not backbone.spec.pre_activation
    assert manifest.data is not None
    assert (manifest.data.count, manifest.data.fingerprint) == (36, read_labelled(config.train).fingerprint)
    assert manifest.backbone.licence.restrictions == ("data: CC-BY-NC-4.0",)
    head = manifest.heads["classifier"]
    assert (head.kind, head.in_dim, head.out_dim, head.classes) == ("linear", 64, 3, ("blue", "green", "red"))
    tensors = load_heads(out / "checkpoint", "classifier")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"weight": (3, 64), "bias": (3,)}
    lines = metrics_of(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "images_per_second", "data_wait_share", "epoch", "broken"} <= lines[0].keys()
    assert [line["epoch"] for line in lines] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert list((out / "tensorboard").glob("events.*"))
    results = read_results(out)
    assert (results.task, results.seed) == ("classification", 0)
    assert results.protocol == "classification/v2 epochs=2 weights=last size=16 crop=1"
    assert results.checkpoint.path == str(out / "checkpoint")
    assert results.checkpoint.sha256 == manifest.weights.sha256
    assert {role: (data.path, data.count, data.broken) for role, data in results.datasets.items()} == {
        "train": (str(config.train), 36, 0),
        "test": (str(config.test), 18, 0),
    }
    assert results.made_by.package == manifest.made_by.package == "stillroom-cls-transfer"
    assert results.made_by.config["schedule"]["kind"] == "Cosine"
    assert results.seconds > 0


def test_the_accuracy_is_that_of_the_checkpoint_and_its_classifier(labelled: Make, tmp_path: Path) -> None:
    classes = ("blue", "green", "grey", "lime", "pink", "red", "teal")
    train, test = labelled("train", 4, classes), labelled("test", 3, classes, seed=1)
    out = finetune(
        small_config(train, test, tmp_path / "run", lrs=(0.0,))
    )  # untrained: some of the best five are wrong
    backbone, manifest = load_checkpoint(out / "checkpoint")
    head = load_heads(out / "checkpoint", "classifier")
    view, normalize = EvaluationView(backbone.spec.input), Normalize(backbone.spec.input)
    hits = {"top1": 0, "top5": 0}
    for label, name in enumerate(manifest.heads["classifier"].classes):
        for path in sorted((test / name).iterdir()):
            with torch.no_grad():
                pooled = backbone.eval()(normalize(view(Image.open(path))[None])).pooled
            order = (pooled @ head["weight"].T + head["bias"])[0].argsort(descending=True).tolist()
            hits["top1"] += order[0] == label
            hits["top5"] += label in order[:5]
    assert 0 < hits["top1"] < hits["top5"] < 21
    assert read_results(out).metrics == {name: pytest.approx(count / 21) for name, count in hits.items()}


def test_top5_is_reported_only_for_more_than_five_classes(labelled: Make, tmp_path: Path) -> None:
    for classes in (("a", "b", "c", "d", "e"), ("a", "b", "c", "d", "e", "f")):
        train = labelled(f"train{len(classes)}", 2, classes)
        out = finetune(small_config(train, train, tmp_path / f"run{len(classes)}", batch_size=10))
        assert ("top5" in read_results(out).metrics) == (len(classes) > 5)


def test_colours_are_learnt_in_a_few_epochs(config: ClassifyConfig) -> None:
    out = finetune(replace(config, epochs=5))
    losses = [line["loss"] for line in metrics_of(out)]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert read_results(out).metrics["top1"] > 0.9
    assert summary(out) == f"{out}: {100 * read_results(out).metrics['top1']:.1f} % top-1"


def test_the_learning_rate_is_the_schedules(config: ClassifyConfig) -> None:
    out = finetune(replace(config, epochs=2, lrs=(0.5,), schedule=Step(every=1, gamma=0.1)))
    assert [line["lr"] for line in metrics_of(out)] == pytest.approx([0.5] * 3 + [0.05] * 3)


def test_one_step_is_sgd_by_hand(config: ClassifyConfig) -> None:
    """w <- w - lr (g + weight decay w), on every parameter; the gradient follows from a second weight decay."""
    base = replace(config, batch_size=36, lrs=(0.1,), weight_decay=0.0, schedule=Step())
    first = dict(build_model(base, 3).named_parameters())
    plain, decayed = (
        weights(finetune(replace(base, weight_decay=decay, out=config.out.with_name(f"run{decay}"))))
        for decay in (0.0, 0.5)
    )
    for name, initial in first.items():
        key = name.removeprefix("backbone.net.").removeprefix("head.0.")
        assert not torch.equal(plain[key], initial), name
        torch.testing.assert_close(decayed[key], plain[key] - 0.1 * 0.5 * initial.detach(), rtol=1e-4, atol=1e-6)


def test_momentum_changes_the_weights(config: ClassifyConfig) -> None:
    with_momentum, without = (
        weights(finetune(replace(config, momentum=momentum, out=config.out.with_name(f"run{momentum}"))))
        for momentum in (0.9, 0.0)
    )
    assert not torch.equal(with_momentum["conv1.weight"], without["conv1.weight"])


def test_every_tensor_of_a_distilled_checkpoint_is_loaded(config: ClassifyConfig, tmp_path: Path) -> None:
    student = save_student(tmp_path / "student")
    model = build_model(replace(config, checkpoint=(str(tmp_path / "student"),)), 3)
    assert_bit_equal(dict(model.backbone.net.state_dict()), dict(student.net.state_dict()))


def test_fine_tuning_begins_with_the_checkpoints_weights(config: ClassifyConfig, tmp_path: Path) -> None:
    student = save_student(tmp_path / "student")
    out = finetune(replace(config, checkpoint=(str(tmp_path / "student"),), lrs=(0.0,), size=None))
    backbone, manifest = load_checkpoint(out / "checkpoint")
    own, given = (dict(b.net.named_parameters()) for b in (backbone, student))
    assert_bit_equal(own, given)
    assert manifest.method == "finetune" and manifest.backbone.input.size == 24


def test_fine_tuning_changes_every_parameter(config: ClassifyConfig, tmp_path: Path) -> None:
    student = save_student(tmp_path / "student")
    out = finetune(replace(config, checkpoint=(str(tmp_path / "student"),)))
    tuned = dict(load_checkpoint(out / "checkpoint")[0].net.named_parameters())
    assert [name for name, tensor in student.net.named_parameters() if torch.equal(tensor, tuned[name])] == []


def test_the_classifier_reads_after_the_activation_whatever_the_checkpoint_says(
    config: ClassifyConfig, tmp_path: Path
) -> None:
    save_student(tmp_path / "student")
    assert load_checkpoint(tmp_path / "student")[1].backbone.pre_activation
    out = finetune(replace(config, checkpoint=(str(tmp_path / "student"),)))
    backbone, manifest = load_checkpoint(out / "checkpoint")
    assert not manifest.backbone.pre_activation
    assert (backbone.eval()(torch.randn(2, 3, 16, 16)).pooled >= 0).all()


@pytest.mark.parametrize(("kind", "method"), [("random", "supervised"), ("checkpoint", "finetune")])
def test_the_method_says_whether_training_began_at_random_weights(
    config: ClassifyConfig, tmp_path: Path, kind: str, method: str
) -> None:
    save_student(tmp_path / "student")
    checkpoint = {"random": ("random:cifar/resnet20",), "checkpoint": (str(tmp_path / "student"),)}[kind]
    out = finetune(replace(config, checkpoint=checkpoint))
    assert load_checkpoint(out / "checkpoint")[1].method == method == read_results(out).checkpoint.method


def test_restrictions_of_the_initial_weights_stay_with_the_trained_ones(config: ClassifyConfig, tmp_path: Path) -> None:
    save_student(tmp_path / "student", Licence(spdx="Apache-2.0", restrictions=("teacher: research only",)))
    out = finetune(replace(config, checkpoint=(str(tmp_path / "student"),), data_licence="research only"))
    licence = load_checkpoint(out / "checkpoint")[1].backbone.licence
    assert licence == Licence(spdx="Apache-2.0", restrictions=("teacher: research only", "data: research only"))


def test_same_seed_gives_the_same_weights_and_another_seed_others(config: ClassifyConfig) -> None:
    one, again, other = (
        weights(finetune(replace(config, seeds=(seed,), out=config.out.with_name(name))))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert_bit_equal(one, again)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(one["weight"], other["weight"])


def test_worker_processes_change_no_bit(config: ClassifyConfig) -> None:
    one = weights(finetune(config))
    two = weights(finetune(replace(config, workers=2, out=config.out.with_name("two"))))
    assert_bit_equal(one, two)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The batches that a run feeds to its net from here on; the net does what it always does."""
    batches: list[torch.Tensor] = []
    forward = Classifier.forward

    def watch(model: Classifier, images: torch.Tensor) -> torch.Tensor:
        batches.append(images)
        return forward(model, images)

    monkeypatch.setattr(Classifier, "forward", watch)
    return batches


def equal_images(some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which of some (rows) equals which of others (columns)."""
    return (some[:, None] == others[None]).all(dim=(2, 3, 4))


def test_training_and_test_use_the_input_of_the_run(config: ClassifyConfig, batches: list[torch.Tensor]) -> None:
    out = finetune(replace(config, size=20, crop_fraction=0.5))
    assert [images.shape[-1] for images in batches] == [20] * 5
    assert read_results(out).protocol == "classification/v2 epochs=1 weights=last size=20 crop=0.5"


def test_a_smallest_crop_of_1_gives_whole_images_and_half_of_them_mirrored(
    config: ClassifyConfig, batches: list[torch.Tensor]
) -> None:
    finetune(replace(config, test=config.train, size=36, min_scale=1.0, batch_size=36))
    trained, whole = batches
    plain, mirrored = (equal_images(trained, images).any(dim=1) for images in (whole, whole.flip(3)))
    assert (plain ^ mirrored).all()
    assert 8 < int(mirrored.sum()) < 28


def test_another_seed_gives_other_crops_in_another_order(config: ClassifyConfig, batches: list[torch.Tensor]) -> None:
    settings = {"test": config.train, "size": 36, "min_scale": 1.0, "batch_size": 36}
    for seed in (0, 1):
        out = config.out.with_name(f"whole{seed}")
        finetune(replace(config, **settings, seeds=(seed,), out=out))
    whole = torch.cat([batches[1], batches[1].flip(3)])
    orders = [equal_images(batches[place], whole).int().argmax(dim=1) % 36 for place in (0, 2)]
    assert sorted(orders[0].tolist()) == sorted(orders[1].tolist()) == list(range(36))
    assert int((orders[0] == orders[1]).sum()) < 9
    batches.clear()
    for seed in (0, 1):
        out = config.out.with_name(f"crops{seed}")
        finetune(replace(config, batch_size=36, seeds=(seed,), out=out))
    assert not equal_images(batches[0], batches[2]).any()


def test_a_logged_loss_is_the_mean_since_the_line_before(config: ClassifyConfig) -> None:
    every = metrics_of(finetune(replace(config, epochs=2)))
    third = metrics_of(finetune(replace(config, epochs=2, log_every=3, out=config.out.with_name("third"))))
    losses = [line["loss"] for line in every]
    assert [line["loss"] for line in third] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])


def test_bf16_autocast_trains_float32_weights(config: ClassifyConfig) -> None:
    out = finetune(replace(config, amp="bf16"))
    plain = finetune(replace(config, out=config.out.with_name("plain")))
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(out).values())
    losses = [metrics_of(path)[0]["loss"] for path in (out, plain)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize(  # before the first state, and two steps or more behind one
    "kill_after", [pytest.param(1, marks=pytest.mark.slow), 7]
)
def test_a_killed_run_resumes_to_the_bit(config: ClassifyConfig, kill_after: int) -> None:
    config = replace(config, epochs=8, save_every=5)
    killed = config.out.with_name("killed")
    whole = finetune(config)
    process = in_a_process(partial(finetune, replace(config, out=killed)))
    metrics = killed / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < kill_after:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    assert not (killed / "results.json").exists()
    begun = metrics.read_text().count("\n")
    assert resume(killed, workers=1) == killed
    assert begun < 24
    assert_bit_equal(weights(whole), weights(killed))
    assert [(line["step"], line["loss"]) for line in metrics_of(killed)] == [
        (line["step"], line["loss"]) for line in metrics_of(whole)
    ]
    assert read_results(killed).metrics == read_results(whole).metrics


def without_the_last_state(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """As if a run had been killed before it could write the state of its last step."""
    save = RunDirectory.save_state
    monkeypatch.setattr(RunDirectory, "save_state", lambda self, s: None if s["step"] == step else save(self, s))


def test_resume_starts_from_the_last_state_and_not_from_the_beginning(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_the_last_state(monkeypatch, 6)
    out = finetune(replace(config, epochs=2, save_every=4))
    last = weights(out)
    (out / "results.json").unlink()
    steps: list[int] = []
    monkeypatch.setattr(train, "seed_everything", lambda *numbers: steps.append(numbers[1] if numbers[1:] else -1))
    resume(out)
    assert steps == [4, 5]  # the two steps behind the state
    assert_bit_equal(last, weights(out))
    assert [line["step"] for line in metrics_of(out)] == [1, 2, 3, 4, 5, 6]


def test_resume_takes_another_log_interval_and_a_moved_directory(config: ClassifyConfig) -> None:
    out = finetune(replace(config, epochs=2))
    (out / "results.json").unlink()
    moved = out.rename(out.with_name("moved"))
    shutil.rmtree(moved / "state")
    assert resume(moved, log_every=3) == moved
    assert [line["step"] for line in metrics_of(moved)] == [3, 6]
    assert read_results(moved).checkpoint.path == str(moved / "checkpoint")


def test_a_finished_run_is_not_run_again(config: ClassifyConfig) -> None:
    out = finetune(config)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert resume(out) == out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written


def test_resume_refuses_images_that_changed(config: ClassifyConfig) -> None:
    out = finetune(config)
    (out / "results.json").unlink()
    (config.train / "red" / "000.png").unlink()
    with pytest.raises(ValueError, match=r"the data in .*train have changed since .*run began: choose another --out"):
        resume(out)


def test_resume_refuses_pixels_that_changed_and_takes_images_that_were_moved(
    config: ClassifyConfig, tmp_path: Path
) -> None:
    out = finetune(config)
    (out / "results.json").unlink()
    image = config.test / "red" / "000.png"
    pixels = image.read_bytes()
    image.write_bytes(pixels[:-1] + b"!")
    with pytest.raises(ValueError, match=r"the data in .*test have changed since .*run began"):
        resume(out)
    image.write_bytes(pixels)
    moved = config.test.rename(tmp_path / "moved")
    resume(out, test=moved)
    assert read_results(out).extra["moved"] == {"test": str(moved)}


def test_resume_of_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run directory"):
        resume(tmp_path)


def test_an_existing_run_is_refused_and_left_alone(config: ClassifyConfig) -> None:
    config.out.mkdir()
    with pytest.raises(ValueError, match="exists: choose another --out"):
        finetune(config)
    assert list(config.out.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_a_state(config: ClassifyConfig) -> None:
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d: lower --lr; the last good state is kept"):
        finetune(replace(config, lrs=(1e30,), epochs=2, save_every=1))
    assert not (config.out / "results.json").exists()
    state = torch.load(config.out / "state" / "last.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_weights_that_are_not_finite_are_never_saved_even_if_no_line_was_logged(config: ClassifyConfig) -> None:
    with pytest.raises(ValueError, match=r"the weights are not finite at step \d: lower --lr; the last good state is"):
        finetune(replace(config, lrs=(1e30,), epochs=2, save_every=1, log_every=100))
    state = torch.load(config.out / "state" / "last.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_broken_image_is_refused_by_name_or_skipped_named_and_counted(
    config: ClassifyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [config.test / "blue" / "001.png", config.train / "red" / "003.png"]
    break_image(broken[0])
    with pytest.raises(ValueError, match=r"blue/001\.png cannot be read as an image"):
        finetune(replace(config, out=config.out.with_name("tested")))
    break_image(broken[1])
    with pytest.raises(ValueError, match=r"red/003\.png cannot be read as an image"):
        finetune(config)
    out = finetune(replace(config, on_broken="skip", epochs=2, out=config.out.with_name("skipped")))
    results = read_results(out)
    assert [results.datasets[role].broken for role in ("train", "test")] == [1, 1]
    assert {sentence.split(" cannot")[0] for sentence in results.extra["broken"]} == set(map(str, broken))
    assert metrics_of(out)[-1]["broken"] == 1
    assert capsys.readouterr().err.count("skipped: ") == 2


def test_a_training_batch_without_a_readable_image_is_refused(config: ClassifyConfig) -> None:
    for path in config.train.glob("*/*"):
        break_image(path)
    with pytest.raises(ValueError, match=r"no image of a whole batch could be read, for instance: .*\.png cannot be"):
        finetune(replace(config, on_broken="skip"))


def test_a_test_set_without_a_readable_image_is_refused(config: ClassifyConfig) -> None:
    for path in config.test.glob("*/*"):
        break_image(path)
    with pytest.raises(ValueError, match=r"no image of .*test could be read"):
        finetune(replace(config, on_broken="skip"))


def test_one_class_is_refused(labelled: Make, tmp_path: Path) -> None:
    one = labelled("one", classes=("blue",))
    with pytest.raises(ValueError, match="one holds one class, blue: at least two are needed"):
        finetune(small_config(one, one, tmp_path / "run"))


def test_classes_that_differ_are_refused(config: ClassifyConfig, labelled: Make) -> None:
    other = labelled("other", per_class=1, classes=("blue", "green", "rose"))
    with pytest.raises(ValueError, match=r"differ from the training set's: missing \['red'\], extra \['rose'\]"):
        finetune(replace(config, test=other))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 0}, "--epochs is 0: it must be at least 1"),
        ({"batch_size": 0}, "--batch-size is 0: it must be at least 1"),
        ({"log_every": 0}, "--log-every is 0: it must be at least 1"),
        ({"save_every": -1}, "--save-every is -1: it must be at least 1"),
        ({"min_scale": 1.5}, r"--min-scale is 1\.5: it must lie in \(0, 1\]"),
        ({"min_scale": 0.0}, r"--min-scale is 0\.0: it must lie in \(0, 1\]"),
        ({"batch_size": 64}, "batch size 64 is larger than the data: 36 images"),
        ({"size": 0}, "input size is 0 px"),
        (
            {"checkpoint": ("random:timm/vit_tiny_patch16_224",), "size": 33},
            r"vit_tiny_patch16_224 takes no images of 33 x 33 px \(.*\): pass another --size",
        ),
    ],
)
def test_impossible_settings_are_refused_before_there_is_a_run_directory(
    config: ClassifyConfig, changes: dict, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        finetune(replace(config, **changes))
    assert not config.out.exists()


def plain_config(root: Path, out: Path) -> ClassifyConfig:
    """15 steps at lr 0.01 of a net without batch norm (ConvNeXt)."""
    settings = {"checkpoint": (str(root / "first"),), "size": 32, "epochs": 5, "lrs": (0.01,)}
    return small_config(root / "train", root / "test", out, **settings)


def watched_config(root: Path, out: Path) -> ClassifyConfig:
    """An epoch of a net with batch norm, on folders with broken images."""
    return small_config(root / "torn", root / "torn", out, on_broken="skip")


def test_two_processes_see_what_one_sees_and_agree(
    config: ClassifyConfig, labelled: Make, tmp_path: Path, in_two_processes: Callable[..., list]
) -> None:
    torch.manual_seed(6)
    first = build_backbone("timm/convnext_atto", arguments={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 40]})
    save_checkpoint(tmp_path / "first", first, method="random", package="test")
    torn = read_labelled(labelled("torn", per_class=12))
    second = Run(device=torch.device("cpu"), rank=1, world_size=2)
    trained = {index for batch in TrainingBatches(36, 12, 1, 0, second) for _, index in batch}
    tested = {index for batch in EvaluationBatches(36, 12, second) for _, index in batch}
    hidden = min(trained & tested)  # an image that only the second process meets, in training and in the test
    break_image(torn.paths[hidden])

    one = finetune(plain_config(tmp_path, tmp_path / "one"))
    write, classify = record.write_results, train.classify

    def write_late(directory: Path, results: Results) -> None:  # a slow disk: the others would look for it too early
        assert distributed.get_rank() == 0
        time.sleep(1)
        write(directory, results)

    def watch(model: Classifier, files: Source, run: Run, **options: object) -> Predictions:
        torch.save(model.state_dict(), tmp_path / f"tested-{run.rank}.pt")
        return classify(model, files, run, **options)

    def two() -> str:
        record.write_results = write_late
        return summary(finetune(plain_config(tmp_path, tmp_path / "two")))

    def watched() -> str:
        record.write_results, train.classify = write_late, watch
        return summary(finetune(watched_config(tmp_path, tmp_path / "watched")))

    for call in (two, watched):
        lines = in_two_processes(call)
        assert lines[0] == lines[1]  # each process reads the file that the first one writes

    ours, theirs = weights(one), weights(tmp_path / "two")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-5), name
    assert not torch.equal(ours["stem.0.weight"], first.net.state_dict()["stem.0.weight"])
    assert [line["step"] for line in metrics_of(tmp_path / "two")] == list(range(1, 16))
    assert metrics_of(tmp_path / "two")[-1]["loss"] == pytest.approx(metrics_of(one)[-1]["loss"], rel=1e-4)
    assert read_results(tmp_path / "two").metrics == read_results(one).metrics

    results = read_results(tmp_path / "watched")  # what only the second process met is known, too
    assert [results.datasets[role].broken for role in ("train", "test")] == [1, 1]
    assert all(str(torn.paths[hidden]) in sentence for sentence in results.extra["broken"])
    both = [torch.load(tmp_path / f"tested-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_bit_equal(*both)  # batch norm's statistics as well: one net is tested, the one that is saved
    saved = load_file(tmp_path / "watched" / "checkpoint" / "model.safetensors")
    assert torch.equal(both[1]["backbone.net.bn1.running_mean"], saved["bn1.running_mean"])


def test_the_epoch_that_is_best_on_the_held_out_part_is_tested_and_kept(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = iter([0.4, 0.9, 0.9, 0.3])
    seen: list[dict[str, torch.Tensor]] = []
    classify = train.classify

    def planned(model, files, run, **options):
        found = classify(model, files, run, **options)
        if options.get("label") != "held out":
            return found
        seen.append({name: tensor.clone() for name, tensor in model.backbone.net.state_dict().items()})
        top1 = next(tops)
        labels = torch.zeros(10, dtype=torch.long)
        logits = torch.nn.functional.one_hot((torch.arange(10) >= round(10 * top1)).long(), 3).float()
        return replace(found, logits=logits, labels=labels, indices=torch.arange(10))

    monkeypatch.setattr(train, "classify", planned)
    out = finetune(replace(config, epochs=4, batch_size=11, held_out=0.1))
    results = read_results(out)
    assert results.extra["best"] == {"epoch": 2, "top1": 0.9} and results.metrics["val_top1"] == 0.9
    assert_bit_equal(load_file(out / "checkpoint" / "model.safetensors"), seen[1])
    assert "held-out=0.1 epochs=4 weights=best " in results.protocol
    assert [line["val_top1"] for line in metrics_of(out) if "val_top1" in line] == pytest.approx([0.4, 0.9, 0.9, 0.3])
    assert results.datasets["val"].count == 3
    assert {path.name for path in (out / "figures").iterdir()} == {"confusion.png", "curves.png"}


def test_a_run_with_everything_on_resumes_to_the_bit(config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    without_the_last_state(monkeypatch, 9)
    full = replace(
        config,
        epochs=3,
        batch_size=11,
        held_out=0.1,
        save_every=5,
        ema=0.9,
        mixup=0.2,
        cutmix=1.0,
        randaugment=9,
        label_smoothing=0.1,
        accumulate=2,
        hidden=(8,),
        freeze=1,
        layer_decay=0.7,
        amp="bf16",
    )
    out = finetune(full)
    before, measured = weights(out), read_results(out).metrics
    assert set(before) > {"0.weight", "2.weight"}
    (out / "results.json").unlink()
    resume(out)
    assert_bit_equal(before, weights(out))
    assert read_results(out).metrics == measured


def test_micro_batches_give_the_step_of_the_whole_batch_where_nothing_is_normalised_by_it(
    config: ClassifyConfig, tmp_path: Path
) -> None:
    torch.manual_seed(6)
    first = build_backbone("timm/convnext_atto", arguments={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 40]})
    save_checkpoint(tmp_path / "first", first, method="random", package="test")
    plain = replace(
        config, checkpoint=(str(tmp_path / "first"),), size=32, batch_size=11, label_smoothing=0.1
    )  # parts of 4, 4 and 3 images
    one, three = (
        weights(finetune(replace(plain, accumulate=parts, out=config.out.with_name(f"in{parts}")))) for parts in (1, 3)
    )
    for name in one:
        torch.testing.assert_close(one[name], three[name], rtol=0, atol=1e-5, msg=name)


def test_the_moving_average_is_what_is_kept(config: ClassifyConfig) -> None:
    average, plain = (
        weights(finetune(replace(config, ema=ema, out=config.out.with_name(f"ema{ema}")))) for ema in (0.9, 0.0)
    )
    first = build_model(config, 3).backbone.net.conv1.weight.detach()
    apart = [float((each["conv1.weight"] - first).abs().mean()) for each in (average, plain)]
    assert 0 < apart[0] < 0.9 * apart[1]
    assert "weights=last average" in read_results(config.out.with_name("ema0.9")).protocol


def test_mixing_gives_shares_of_classes_that_sum_to_one(config: ClassifyConfig) -> None:
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 3
    for changes in ({"mixup": 0.5}, {"cutmix": 0.5}, {"mixup": 0.5, "cutmix": 0.5}):
        torch.manual_seed(0)
        mixed, shares = build_mixing(replace(config, **changes), 3)(images, labels)
        assert mixed.shape == images.shape and not torch.equal(mixed, images)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(8))
    same, whole = build_mixing(config, 3)(images, labels)
    assert torch.equal(same, images) and torch.equal(whole, labels)


def test_legacy_feeds_images_as_they_are_and_chooses_on_the_test(config: ClassifyConfig) -> None:
    out = finetune(replace(config, normalise=False, choose="best-on-test"))
    assert read_results(out).protocol == (
        "classification/v2 epochs=1 weights=best-on-test size=16 crop=1 not-normalised"
    )
    assert load_checkpoint(out / "checkpoint")[0].spec.input.mean == (0.0, 0.0, 0.0)


def test_legacy_kdep_normalises_cifar100_by_its_own_statistics_and_no_other_task(
    config: ClassifyConfig, run: Run
) -> None:
    legacy = PRESETS["legacy-kdep"](checkpoint=config.checkpoint, out=config.out)
    cifar = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    for task, statistics, words in (
        ("cifar100", cifar, "cifar100-statistics"),
        ("dtd", ((0, 0, 0), (1, 1, 1)), "not-"),
    ):
        settings = replace(legacy, tasks=(task,))
        model = build_model(settings, 3)
        assert (model.backbone.spec.input.mean, model.backbone.spec.input.std) == statistics
        assert words in protocol(settings, read_sets(config, run), model)
    folders = build_model(replace(legacy, train=config.train, test=config.test), 3)
    assert folders.backbone.spec.input.mean == (0, 0, 0)


def test_legacy_kdep_sees_the_test_images_at_every_fifth_epoch_and_the_last(config: ClassifyConfig) -> None:
    legacy = PRESETS["legacy-kdep"](checkpoint=config.checkpoint, out=config.out)
    out = finetune(replace(config, choose=legacy.choose, val_every=legacy.val_every, epochs=8, batch_size=36))
    assert [line["epoch"] for line in metrics_of(out) if "val_top1" in line] == [1, 6, 8]
    assert read_results(out).protocol.endswith("weights=best-on-test size=16 crop=1 test-every=5")


def test_the_last_weights_are_reported_with_their_own_accuracy(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finetune(replace(config, epochs=3, batch_size=11, held_out=0.1, choose="last"))
    looks = [line["val_top1"] for line in metrics_of(out) if "val_top1" in line]
    results = read_results(out)
    assert results.metrics["val_top1"] == looks[-1] and results.extra["best"]["epoch"] == 3
    state = torch.load(out / "state" / "last.pt", weights_only=True)
    saved = load_file(out / "checkpoint" / "model.safetensors")
    assert torch.equal(saved["conv1.weight"], state["model"]["backbone.net.conv1.weight"])


def test_weights_of_the_last_step_that_are_not_finite_are_not_published(config: ClassifyConfig) -> None:
    with pytest.raises(ValueError, match=r"the weights are not finite at step 1: lower --lr"):
        finetune(replace(config, lrs=(1e30,), weight_decay=1e30, batch_size=36))
    assert not (config.out / "results.json").exists()


def test_the_moving_average_is_that_of_the_steps(config: ClassifyConfig) -> None:
    model = build_model(config, 3)
    learner = TrainState(replace(config, ema=0.75), model, Run(device=torch.device("cpu")))
    expected = None
    for step in range(3):
        learner.advance(torch.randn(6, 3, 16, 16), torch.arange(6) % 3, step / 3)
        own = model.head[0].weight.detach().clone()
        expected = own if expected is None else 0.75 * expected + 0.25 * own
    torch.testing.assert_close(learner.eval_model.head[0].weight.detach(), expected)


def test_a_step_takes_each_levels_rate_and_smoothed_labels(config: ClassifyConfig, run: Run) -> None:
    """w <- w - lr x decay^depth x gradient of the cross-entropy with shares (1 - s) [k = label] + s / 3."""
    settings = replace(config, layer_decay=0.5, label_smoothing=0.3, momentum=0.0, weight_decay=0.0, lrs=(0.1,))
    model = build_model(settings, 3).train()
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    twin = copy.deepcopy(model)
    shares = 0.7 * torch.nn.functional.one_hot(labels, 3) + 0.1
    loss = -(shares * twin(images).log_softmax(dim=1)).sum(dim=1).mean()
    loss.backward()
    loss_of_step = TrainState(settings, model, run).advance(images, labels, epoch=0.0)
    assert float(loss_of_step) == pytest.approx(float(loss.detach()), rel=1e-6)
    levels = parameters_by_level(twin.backbone)
    depths = {f"backbone.net.{name}": 4 - place for place, names in enumerate(levels) for name in names}
    own = [name for names in levels if names for name in names]
    assert len(own) == len(list(twin.backbone.net.parameters()))
    used = sorted({depths[f"backbone.net.{name}"] for name in own})
    scale = {depth: 0.5 ** (1 + used.index(depth)) for depth in used}
    for (name, before), after in zip(twin.named_parameters(), model.parameters(), strict=True):
        rate = 0.1 if name.startswith("head.") else 0.1 * scale[depths[name]]
        torch.testing.assert_close(after, before - rate * before.grad, rtol=1e-5, atol=1e-7)


def test_the_logged_rate_is_the_cosine_in_the_middle_of_each_step(config: ClassifyConfig) -> None:
    schedule = Cosine(warmup_epochs=1.0)
    out = finetune(replace(config, epochs=3, lrs=(0.5,), schedule=schedule))
    rates = [0.5 * (step + 0.5) / 3 for step in range(3)]
    rates += [0.25 * (1 + math.cos(math.pi * ((step + 0.5) / 3 - 1) / 2)) for step in range(3, 9)]
    assert [line["lr"] for line in metrics_of(out)] == pytest.approx(rates)


def test_training_crops_use_the_checkpoints_interpolation(labelled: Make) -> None:
    picture = Image.open(next((labelled("train", 1) / "red").iterdir())).resize((9, 9))
    crops = {}
    for interpolation in ("bilinear", "bicubic"):
        view = TrainingView(small_config(Path(), Path(), Path()), InputSpec(size=24, interpolation=interpolation))
        crops[interpolation] = view(picture, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    expected = v2.RandomResizedCrop(24, scale=(0.35, 1.0), interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
    assert torch.equal(crops["bilinear"], v2.RandomHorizontalFlip()(expected(v2.functional.pil_to_tensor(picture))))
    assert not torch.equal(crops["bilinear"], crops["bicubic"])


def test_only_kdeps_released_recipe_reads_images_as_they_are_stored() -> None:
    stored = {name: preset(checkpoint=("a",), out=Path("b")).as_stored for name, preset in PRESETS.items()}
    assert stored == {name: name == "legacy-kdep" for name in PRESETS}


def test_with_mixup_and_cutmix_each_batch_takes_one_of_the_two() -> None:
    mix = build_mixing(small_config(Path(), Path(), Path(), mixup=1.0, cutmix=1.0), 4)
    images = torch.stack([torch.full((3, 16, 16), float(value)) for value in range(4)])
    pasted = 0
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, _ = mix(images, torch.arange(4))
        pasted += bool((mixed == mixed.round()).all())  # whole pixels of the others: CutMix
    assert 4 < pasted < 16


def test_the_test_images_are_classified_once_and_select_nothing(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    classified: list[tuple[Path, ...]] = []
    real = train.classify
    monkeypatch.setattr(
        train, "classify", lambda model, files, *a, **k: classified.append(files.paths) or real(model, files, *a, **k)
    )
    finetune(replace(config, epochs=3, held_out=0.25, batch_size=9))
    (tested,) = [paths for paths in classified if config.test in paths[0].parents]
    assert classified[-1] == tested and len(classified) == 4
    assert all(config.train in path.parents for paths in classified[:-1] for path in paths)


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("hidden", [(), (8,)])
def test_a_run_keeps_what_it_began_with_and_resumes_without_its_checkpoint(
    config: ClassifyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: bool,
    hidden: tuple[int, ...],
) -> None:
    save_student(tmp_path / "student")
    without_the_last_state(monkeypatch, 6)
    out = finetune(replace(config, checkpoint=(str(tmp_path / "student"),), epochs=2, save_every=4, hidden=hidden))
    before, results = weights(out), read_results(out)
    initial, manifest = load_checkpoint(out / "initial")
    assert manifest.weights.sha256 == load_checkpoint(tmp_path / "student")[1].weights.sha256
    assert initial.spec.input.size == 16 and "classifier" in manifest.heads
    hashes = json.loads((out / "inputs.json").read_text())["sha256"]
    assert {role: hashes[role] for role in results.datasets} == {
        role: record.fingerprint for role, record in results.datasets.items()
    }
    assert hashes["checkpoint"] == manifest.weights.sha256 and {"train content", "classes"} <= hashes.keys()
    (out / "results.json").unlink()
    if not state:
        shutil.rmtree(out / "state")
    shutil.rmtree(tmp_path / "student")
    resume(out)
    assert_bit_equal(before, weights(out))
    assert read_results(out).extra["initial_sha256"] == results.extra["initial_sha256"] == manifest.weights.sha256


def test_seconds_and_broken_images_before_a_resume_count(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_image(config.train / "red" / "000.png")
    without_the_last_state(monkeypatch, 6)
    out = finetune(replace(config, epochs=2, save_every=4, on_broken="skip"))
    whole = read_results(out)
    state = torch.load(out / "state" / "last.pt", weights_only=True)
    assert state["seconds"] > 0
    torch.save({**state, "seconds": 1000.0}, out / "state" / "last.pt")
    (out / "results.json").unlink()
    resume(out)
    again = read_results(out)
    assert again.datasets["train"].broken == whole.datasets["train"].broken == 1
    assert again.seconds > 1000


def test_a_state_of_an_older_version_is_one_sentence(config: ClassifyConfig) -> None:
    out = finetune(config)
    state = torch.load(out / "state" / "last.pt", weights_only=True)
    del state["initial"]
    torch.save(state, out / "state" / "last.pt")
    (out / "results.json").unlink()
    with pytest.raises(ValueError, match=r"was begun by cls_transfer 0.2: finish it with that version, or start again"):
        resume(out)


def test_resume_checks_its_flags(config: ClassifyConfig) -> None:
    out = finetune(config)
    (out / "results.json").unlink()
    with pytest.raises(ValueError, match="--log-every is 0: it must be at least 1"):
        resume(out, log_every=0)


@pytest.mark.slow
def test_a_compiled_net_trains_and_leaves_plain_names(config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    real = torch.compile
    # dynamo without a C++ compiler behind it: seconds instead of a minute
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or real(model, backend="eager"))
    plain, out = finetune(config), finetune(replace(config, compile=True, out=config.out.with_name("compiled")))
    assert len(compiled) == 1
    assert_bit_equal(weights(plain), weights(out))


def test_results_count_what_was_left_out_and_images_in_both_sets(labelled: Make, tmp_path: Path) -> None:
    train, test = labelled("train", per_class=8), labelled("test", per_class=4, seed=1)
    (train / "blue" / "__MACOSX").mkdir()
    shutil.copy(train / "blue" / "000.png", train / "blue" / "__MACOSX" / "000.png")
    shutil.copy(train / "blue" / "001.png", test / "blue" / "same.png")
    (test / "notes.txt").write_text("")
    datasets = read_results(finetune(small_config(train, test, tmp_path / "run"))).datasets
    assert (datasets["train"].count, datasets["train"].left_out) == (24, {"hidden": 1})
    assert (datasets["test"].left_out, datasets["test"].in_train) == ({"not an image": 1}, 1)


def test_a_thin_image_is_cropped_before_it_grows(tmp_path: Path) -> None:
    config = small_config(tmp_path, tmp_path, tmp_path, randaugment=9)
    for size in ((20_000, 1), (1, 20_000)):
        pixels = TrainingView(config, InputSpec(size=32))(Image.new("RGB", size, "teal"), torch.Generator())
        assert tuple(pixels.shape) == (3, 32, 32)


def test_a_run_that_is_refused_in_its_first_step_leaves_no_directory_and_a_later_one_stays(
    config: ClassifyConfig,
) -> None:
    for path in config.train.glob("*/*"):
        break_image(path)
    with pytest.raises(ValueError, match=r"cannot be read as an image"):
        finetune(config)
    assert not config.out.exists()


def test_a_run_that_diverges_after_log_lines_keeps_them(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        TrainState,
        "advance",
        lambda self, *_: self.__dict__.update(step=self.step + 1) or torch.tensor(math.nan if self.step == 3 else 1.0),
    )
    with pytest.raises(ValueError, match="the loss is nan at step 3"):
        finetune(config)
    assert [row["step"] for row in metrics_of(config.out)] == [1, 2]
