"""Detection with torchvision's detectors, from images to checkpoint and results."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import ExifTags, Image
from predicted import assert_predicted_as_evaluated
from pycocotools import mask as rle
from safetensors.torch import load_file
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from stillroom.backbone import (
    Backbone,
    BackboneSpec,
    InputSpec,
    build_backbone,
    load_checkpoint,
    replace_input,
    save_checkpoint,
)
from stillroom.backbone.stopping import Stopped
from stillroom.det_transfer import DetectConfig, finetune, predict, resume
from stillroom.det_transfer.backends.torchvision.images import BoxedImages
from stillroom.det_transfer.backends.torchvision.nets import autocast, boxes_in_float32, build_detector
from stillroom.det_transfer.backends.torchvision.predict import load_predictor, predict_image
from stillroom.det_transfer.backends.torchvision.train import build_optimizer
from stillroom.det_transfer.coco import read_coco
from stillroom.det_transfer.data import read_data
from stillroom.det_transfer.detections import Detections
from stillroom.det_transfer.figures import draw_overlay
from stillroom.det_transfer.freeze import sync_norms
from stillroom.det_transfer.metrics import index_coco
from stillroom.det_transfer.record import summary
from stillroom.det_transfer.schedule import lr_multiplier
from stillroom.det_transfer.train import check_image_sizes
from stillroom.images import BrokenImageError
from stillroom.runs import Run, RunDirectory, read_results
from stillroom.runs.configs import config_from_json, config_to_json
from stillroom.runs.run import DivergedError, read_metrics
from stillroom.runs.run_files import STATE
from twins import assert_bit_equal, in_a_process

Make = Callable[..., DetectConfig]


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Weights of the whole detector."""
    return torch.load(out / STATE, weights_only=True)["model"]


def test_a_run_writes_checkpoint_predictions_figures_and_results(make_config: Make, student: Path) -> None:
    config = make_config(checkpoint=(str(student),), data_licence="CC-BY-NC-4.0")
    out = finetune(config)
    results = read_results(out)
    assert (results.task, results.seed) == ("detection", 0)
    assert results.protocol == (
        "detection/v1 torchvision faster-rcnn-fpn norm=bn fpn-dim=16 box-dim=32 max-size=96 "
        "steps=4 batch=2 rois=8 size=48 weights=last"
    )
    assert set(results.extra["ap_per_class"]) == {"blue", "red"}
    assert results.metrics["AP"] == pytest.approx(np.mean(list(results.extra["ap_per_class"].values())))
    assert (results.datasets["train"].count, results.datasets["test"].count) == (9, 4)
    assert results.extra["images"] == {"decoder": f"pillow {PIL.__version__}", "exif": "obeyed"}
    assert results.extra["loaded"] == "100 of 100 tensors of the backbone come from the checkpoint"
    first, _ = load_checkpoint(student)
    last, manifest = load_checkpoint(out / "checkpoint")
    assert manifest.method == "finetune" and manifest.backbone.licence.restrictions == ("data: CC-BY-NC-4.0",)
    assert last.spec.pre_activation == first.spec.pre_activation
    prefix = "backbone.body.backbone.net."
    theirs = {k.removeprefix(prefix): t for k, t in weights(out).items() if k.startswith(prefix)}
    assert_bit_equal(dict(last.net.state_dict()), theirs)
    assert not torch.equal(first.net.conv1.weight, last.net.conv1.weight)
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"loss", "loss_classifier", "loss_objectness", "lr", "images_per_second"} <= rows[0].keys()
    assert rows[1]["lr"] == pytest.approx(config.lr * (0.001 + 0.999 / 2))
    predictions = json.loads((out / "predictions.json").read_text())
    assert {row["image_id"] for row in predictions} <= {100, 101, 102, 103}
    assert {row["category_id"] for row in predictions} <= {3, 7}, "the ids of the data set's own JSON"
    for name in ("sheet.png", "precision_recall.png"):
        assert Image.open(out / "figures" / name).size[0] > 300
    with pytest.raises(ValueError, match="exists: choose another --out, or resume it with `resume"):
        finetune(config)
    assert resume(out) == out, "a run that is done is left as it is"

    found = predict(out, config.data / "images" / "val", config.out.parent / "found", score=0.0, device="cpu")
    content = json.loads((found / "detections.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["00.png", "01.png", "02.png", "03.png"]
    assert Image.open(found / "overlays" / "00.png").size == (64, 48)
    again = [row["score"] for row in content["annotations"] if row["image_id"] == 1]
    assert again == [row["score"] for row in predictions if row["image_id"] == 100], "as it was when measured"
    (read, names), middle = read_coco(found / "detections.json", config.data / "images" / "val", "skip"), 0.5
    assert read.num_boxes and names == {3: "blue", 7: "red"}, "in COCO's format, with the data set's ids"
    assert len(index_coco(content).anns) == len(content["annotations"])
    middle = float(np.median([row["score"] for row in content["annotations"]]))
    likely = predict(out, config.data / "images" / "val", config.out.parent / "likely", score=middle, device="cpu")
    kept = [row["score"] for row in json.loads((likely / "detections.json").read_text())["annotations"]]
    assert kept == [row["score"] for row in content["annotations"] if row["score"] >= middle]
    ids = {row["category_id"] for row in content["annotations"]}
    assert ids and ids == {row["category_id"] for row in predictions}, "those of predictions.json"
    with pytest.raises(ValueError, match="found exists: choose another --out"):
        predict(out, config.data / "images" / "val", found, device="cpu")
    with pytest.raises(ValueError, match=r"is not a finished run: it has no results.json"):
        predict(config.data, config.data / "images" / "val", config.out.parent / "other", device="cpu")
    with pytest.raises(ValueError, match=r"--score is 2.0: it must lie in \[0, 1\]"):
        predict(out, config.data / "images" / "val", config.out.parent / "other", score=2.0, device="cpu")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("torchvision/mobilenet_v2", {"norm": "frozen"}),
        ("timm/convnext_atto", {"detector": "retinanet", "lr": 0.01}),
        pytest.param("torchvision/resnet18", {"neck": "c4"}, marks=pytest.mark.slow),
        pytest.param("torchvision/resnet18", {"detector": "mask-rcnn", "amp": "bf16"}, marks=pytest.mark.slow),
        ("timm/vit_tiny_patch16_224", {"train_sizes": (64,), "clip": 1.0}),
        ("cifar/resnet20", {"anchor_scale": 4.0, "frozen": True, "fpn_norm": "gn", "fpn_dim": 32}),
    ],
)
def test_detectors_and_backbones_train(make_config: Make, boxed: Path, name: str, changes: dict) -> None:
    out = finetune(make_config(checkpoint=(f"random:{name}",), steps=2, **changes))
    first, last = (load_file(out / folder / "model.safetensors") for folder in ("initial", "checkpoint"))
    assert first.keys() == last.keys()
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    assert bool(moved) != changes.get("frozen", False)
    if changes.get("norm") == "frozen":
        assert not any("running" in key for key in moved), "no statistics"
        assert not any(key.startswith("features.18.") for key in moved), "no detector uses the last 1x1 convolution"
    masks = changes.get("detector") == "mask-rcnn"
    assert ("maskAP" in read_results(out).metrics) == ("maskAP " in summary(out)) == masks
    if masks:
        found = predict(out, boxed / "images" / "val", out.parent / "found", score=0.0, device="cpu")
        rows = json.loads((found / "detections.json").read_text())["annotations"]
        assert rows and all(row["area"] == rle.area(row["segmentation"]) for row in rows), "not those of their boxes"


def test_a_lack_of_memory_is_not_called_a_wrong_size() -> None:
    class Huge(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(1 << 50)

    backbone = Backbone.from_module(Huge(), BackboneSpec(name="module/Huge", dim=4))
    with pytest.raises(RuntimeError, match="allocate memory"):
        check_image_sizes(backbone)


def test_anchors_are_float32_under_mixed_precision(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    grid = AnchorGenerator.grid_anchors

    def watch(self: AnchorGenerator, *given: Any) -> list[torch.Tensor]:
        anchors = grid(self, *given)
        seen.update(anchor.dtype for anchor in anchors)
        return anchors

    monkeypatch.setattr(AnchorGenerator, "grid_anchors", watch)
    finetune(make_config(amp="bf16", steps=1))
    assert seen == {torch.float32}


def test_two_blocks_are_learned(make_config: Make) -> None:
    """Sixty steps on nine images find most of their blocks: boxes, labels and classes are where they should be."""
    config = make_config(
        checkpoint=("random:timm/test_resnet",),
        steps=60,
        batch_size=4,
        lr=0.01,
        warmup=10,
        anchor_scale=4.0,
        train_sizes=(48,),
        rois=32,
        box_dim=64,
        fpn_dim=32,
        save_every=1000,
        drops=(),
    )
    data = config.data
    assert data is not None
    own = (data / "annotations" / "train.json", data / "images" / "train")
    results = read_results(finetune(replace(config, train=own, val=own)))
    assert results.metrics["AP50"] > 0.5
    assert min(results.extra["ap_per_class"].values()) > 0.2


def test_a_signal_saves_a_state_and_the_same_command_goes_on_to_the_bit(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = make_config(save_every=None, if_exists="resume"), tmp_path / "whole"
    finetune(replace(config, out=whole))
    log = RunDirectory.log

    def ask_to_stop(self: RunDirectory, step: int, values: dict) -> None:
        log(self, step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Stopped, match="75"):
        patched.setattr(RunDirectory, "log", ask_to_stop)
        finetune(config)
    assert torch.load(config.out / STATE, weights_only=True)["step"] == 3
    finetune(config)
    assert_bit_equal(weights(whole), weights(config.out))


@pytest.mark.slow
def test_a_run_stopped_by_sigkill_ends_equal_to_the_bit(make_config: Make, tmp_path: Path) -> None:
    config, whole = make_config(steps=12, workers=1, save_every=4), tmp_path / "whole"
    undisturbed = in_a_process(partial(finetune, replace(config, out=whole)))
    undisturbed.join()
    assert undisturbed.exitcode == 0
    killed = in_a_process(partial(finetune, config))
    deadline = time.monotonic() + 120
    while not any(row["step"] >= 5 for row in read_metrics(config.out)) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.join()
    assert not (config.out / "results.json").exists()
    assert torch.load(config.out / STATE, weights_only=True)["step"] in (4, 8)
    resumed = in_a_process(partial(resume, config.out))
    resumed.join()
    assert resumed.exitcode == 0
    assert_bit_equal(weights(whole), weights(config.out))
    first, second = (read_results(out) for out in (whole, config.out))
    assert first.metrics == second.metrics
    losses = [[(row["step"], row["loss"]) for row in read_metrics(out)] for out in (whole, config.out)]
    assert losses[0] == losses[1]


def test_a_run_whose_boxes_changed_is_not_resumed(make_config: Make, boxed: Path) -> None:
    config = make_config(steps=2)
    out = finetune(config)
    (out / "results.json").unlink()
    file = boxed / "annotations" / "train.json"
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    with pytest.raises(ValueError, match=r"the data in .*train have changed since .*run began"):
        resume(out)


def test_a_sweep_makes_one_table_and_keeps_finished_runs(make_config: Make, small_student: Path) -> None:
    config = make_config(checkpoint=("random", str(small_student)), seeds=(0, 1), steps=1)
    out = finetune(config)
    table = json.loads((out / "table.json").read_text())
    assert table["metric"] == "AP" and list(table["rows"]) == ["random", str(small_student)]
    row = table["rows"][str(small_student)]
    assert len(row["AP"]) == 2 and set(row["ap_per_class"]) == {"blue", "red"}
    stamps = {file: file.stat().st_mtime_ns for file in out.rglob("results.json")}
    assert len(stamps) == 4
    finetune(config)
    assert stamps == {file: file.stat().st_mtime_ns for file in out.rglob("results.json")}
    with pytest.raises(ValueError, match="is a sweep: repeat its command, which resumes it"):
        resume(out)
    with pytest.raises(ValueError, match=r"is a run with other settings \(steps\)"):
        finetune(replace(config, steps=3))
    (config.data / "images" / "val" / "00.png").write_bytes((config.data / "images" / "val" / "01.png").read_bytes())
    with pytest.raises(ValueError, match=r"the data in .*val have changed since .* began"):
        finetune(config)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"norm": "frozen"}, marks=pytest.mark.slow),
        pytest.param({"frozen": True, "steps": 3}, marks=pytest.mark.slow),
        {"norm": "bn", "lr": 0.1},
    ],
)
def test_two_processes_train_one_net(make_config: Make, in_two_processes: Callable, changes: dict) -> None:
    config = make_config(**({"steps": 2, "batch_size": 4, "rois": 4} | changes))

    def call() -> str:
        return str(finetune(config))

    assert in_two_processes(call) == [str(config.out)] * 2
    results = read_results(config.out)
    assert results.datasets["test"].count == 4
    assert [row["step"] for row in read_metrics(config.out)] == list(range(1, config.steps + 1))
    assert_predicted_as_evaluated(config)


def test_channels_come_in_the_checkpoints_order(make_config: Make, boxed: Path, tmp_path: Path) -> None:
    first = replace_input(build_backbone("cifar/resnet20"), channel_order="bgr")
    save_checkpoint(tmp_path / "bgr", first, method="random", package="test")
    config = make_config(checkpoint=(str(tmp_path / "bgr"),))
    images = read_data(config).train
    _, pixels, _ = BoxedImages(images, first.spec.input)[0, 0]
    assert np.array_equal(pixels.permute(1, 2, 0).flip(2).numpy(), np.asarray(Image.open(images.rows[0].file)))
    out = finetune(config)
    measured = [row["score"] for row in json.loads((out / "predictions.json").read_text()) if row["image_id"] == 100]
    found = predict(out, boxed / "images" / "val", tmp_path / "found", score=0.0, device="cpu")
    rows = json.loads((found / "detections.json").read_text())["annotations"]
    assert [row["score"] for row in rows if row["image_id"] == 1] == measured


def test_images_are_flipped_with_their_boxes_and_masks(make_config: Make) -> None:
    images = read_data(make_config(detector="mask-rcnn")).train
    pixels, row = np.asarray(Image.open(images.rows[0].file)), images.rows[0]
    dataset = BoxedImages(images, InputSpec(), seed=0, masks=True)
    turned = []
    for epoch in range(8):
        _, view, target = dataset[epoch, 0]
        turned.append(not np.array_equal(view.permute(1, 2, 0).numpy(), pixels))
        left, upper, right, lower = row.xyxy.T
        if turned[-1]:
            assert np.array_equal(view.permute(1, 2, 0).numpy(), pixels[:, ::-1])
            left, right = row.width - right, row.width - left
        assert np.array_equal(target["boxes"].numpy(), np.stack([left, upper, right, lower], axis=1))
        for (x, y, x2, y2), mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            assert mask[y:y2, x:x2].all() and mask.sum() == (x2 - x) * (y2 - y)
    assert {*turned} == {False, True}


def test_images_are_evaluated_at_the_test_size(make_config: Make) -> None:
    config = make_config(test_size=40, max_size=160)
    model, _ = build_detector(config, build_backbone("torchvision/resnet18"), 2)
    sides: list[torch.Size] = []
    model.backbone.register_forward_pre_hook(lambda _, arguments: sides.append(arguments[0].shape[-2:]))
    predict_image(model, config, torch.zeros(3, 30, 60, dtype=torch.uint8), torch.device("cpu"))
    assert sides == [(64, 96)], "40 x 80 px, filled up to multiples of 32"


def test_every_step_samples_other_anchors_and_boxes(make_config: Make, change: Callable) -> None:
    """One image in two views, with constant weights, gives more than two losses."""

    def keep_one(content: dict) -> None:
        content["images"] = content["images"][:1]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == 100]

    change(keep_one)
    out = finetune(make_config(steps=8, batch_size=1, lr=0.0, norm="frozen", train_sizes=(48,)))
    assert len({row["loss"] for row in read_metrics(out)}) > 4


def test_norms_are_not_decayed(make_config: Make) -> None:
    config = make_config(weight_decay=0.1, fpn_dim=32, fpn_norm="gn")
    model, _ = build_detector(config, build_backbone("timm/mobilenetv2_100"), 2)
    optimizer = build_optimizer(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decay.keys() == dict(model.named_parameters()).keys()
    norms = {name for name, parameter in model.named_parameters() if parameter.ndim == 1 and "bn" in name}
    assert norms and all(decay[name] == 0 for name in norms)
    assert all(decay[name] == 0.1 for name, parameter in model.named_parameters() if parameter.ndim > 1)
    assert decay["backbone.fpn.inner_blocks.0.1.weight"] == 0


def test_synchronised_batch_norms_keep_their_activations(make_config: Make, lively: Callable) -> None:
    model, _ = build_detector(make_config(), lively("timm/mobilenetv2_100"), 2)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = model.eval().backbone(images)
        sync_norms(model)
        after = model.eval().backbone(images)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("detector", ["faster-rcnn", "retinanet"])
def test_boxes_are_finer_than_bfloat16_under_mixed_precision(make_config: Make, detector: str) -> None:
    config = make_config(detector=detector, amp="bf16", rois=64)
    torch.manual_seed(0)
    model, _ = build_detector(config, build_backbone("torchvision/resnet18"), 2)
    boxes_in_float32(model)
    target = [{"boxes": torch.tensor([[100.0, 100, 200, 200]]), "labels": torch.tensor([1])}]
    seen: list[torch.Tensor] = []
    if detector == "faster-rcnn":
        model.roi_heads.register_forward_pre_hook(lambda _, given: seen.extend(given[1]))
    else:
        model.head.register_forward_hook(lambda _, __, answer: seen.append(answer["bbox_regression"]))
    if detector == "faster-rcnn":
        model.roi_heads.box_predictor.register_forward_hook(lambda _, __, answer: seen.extend(answer))
    anchors = (model.rpn if detector == "faster-rcnn" else model).anchor_generator
    anchors.register_forward_hook(lambda _, __, answer: seen.extend(answer))
    with autocast(config, torch.device("cpu")):
        model.train()([torch.rand(3, 300, 500)], target)
    assert seen and all(part.dtype == torch.float32 for part in seen), "what is learned from"
    maps: list[torch.dtype] = []
    model.backbone.register_forward_hook(lambda _, __, answer: maps.extend(map_.dtype for map_ in answer.values()))
    found = predict_image(model, config, torch.randint(0, 256, (3, 300, 500), dtype=torch.uint8), torch.device("cpu"))
    assert set(maps) == {torch.float32}, "all that is measured"
    if len(found.boxes):
        boxes = torch.from_numpy(found.boxes).float()
        assert not torch.equal(boxes, boxes.bfloat16().float()), "what is measured"


def test_a_class_that_is_never_trained_is_never_predicted(make_config: Make) -> None:
    config = make_config(detector="retinanet")
    model, _ = build_detector(config, build_backbone("torchvision/resnet18"), 2)
    torch.nn.init.constant_(model.head.classification_head.cls_logits.bias, 2.0)  # all is found, class 0 too
    found = predict_image(model, config, torch.zeros(3, 48, 64, dtype=torch.uint8), torch.device("cpu"))
    assert {*found.labels.tolist()} == {0, 1}


def test_predicting_by_a_damaged_state_is_one_sentence(make_config: Make) -> None:
    config, backbone = make_config(), build_backbone("cifar/resnet20")
    file = config.out / STATE
    file.parent.mkdir(parents=True)
    for content in ({"step": 1}, {"model": {}}, {"model": 3}, [1], b"", b"PK\x03\x04 torn"):
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(ValueError, match=r"last\.pt .*: copy the run again"):
            load_predictor(config, backbone, 2, Run(device=torch.device("cpu")))


def test_a_loss_that_is_nan_or_infinite_stops_the_run(make_config: Make) -> None:
    with pytest.raises(DivergedError, match=r"the loss is \w+ at one of the steps \d+ to \d+: lower"):
        finetune(make_config(steps=8, lr=1e20, warmup=0, save_every=1))


def test_an_image_that_breaks_during_training_is_named(make_config: Make, boxed: Path) -> None:
    for file in (boxed / "images" / "train").iterdir():
        file.write_bytes(file.read_bytes()[:-200])
    config = make_config()
    with pytest.raises(BrokenImageError, match=r"\.png cannot be read as an image"):
        finetune(config)
    assert not config.out.exists(), "the command can be repeated"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "--steps is 0: it must be at least 1"),
        ({"warmup": -1}, "--warmup is -1: it must be at least 0"),
        ({"lr": float("nan")}, "--lr is nan: it must be at least 0, and finite"),
        ({"weight_decay": float("inf")}, "--weight-decay is inf: it must be at least 0, and finite"),
        ({"anchor_scale": 0.0}, r"--anchor-scale is 0.0: it must be above 0"),
        ({"train_sizes": ()}, "--train-sizes is empty: pass at least one size in pixels"),
        ({"train_sizes": (48, 0)}, r"--train-sizes holds \[48, 0\]: it must be at least 1"),
        ({"drops": (0.8, 0.5)}, r"--drops holds \[0.8, 0.5\]: the fractions must rise"),
        ({"drops": (0.8, 1.0)}, r"--drops holds \[0.8, 1.0\]: it must lie in \(0, 1\)"),
        ({"detector": "retinanet", "neck": "c4"}, "retinanet has no second stage for --neck c4"),
        ({"fpn_norm": "gn", "neck": "c4"}, "--fpn-norm needs a pyramid, --neck c4 has none"),
        ({"fpn_norm": "gn"}, "--fpn-dim is 16: --fpn-norm gn needs a multiple of 32"),
        ({"frozen": True, "neck": "c4"}, "--frozen freezes the last stage too, which is the box head under c4"),
        ({"legacy": "std-1"}, "--legacy repeats what KDEP did in Detectron2"),
        ({"stride_in_1x1": True}, "--stride-in-1x1 is about the bottlenecks of KDEP's C4 head: pass --neck c4 and"),
        ({"framework_config": Path("x.py")}, "--framework-config takes a LazyConfig of Detectron2"),
        ({"batch_size": 64}, "batch size 64 is larger than the data: 9 images"),
        ({"checkpoint": ()}, "--checkpoint is empty: pass at least one"),
        ({"checkpoint": ("random",)}, "--checkpoint random names no net"),
        ({"seeds": (0, -1)}, r"--seeds holds \[0, -1\]: it must be at least 0"),
        (
            {"checkpoint": ("random:timm/vit_tiny_patch16_224",), "detector": "retinanet"},
            "retinanet takes maps of several strides",
        ),
        ({"checkpoint": ("random:timm/vit_small_patch14_dinov2",)}, "has maps of stride 14: a detector needs powers"),
        ({"checkpoint": ("random:timm/swin_tiny_patch4_window7_224",)}, "takes no images of 96 x 64 px"),
        (
            {"checkpoint": ("random:torchvision/resnet18", "random:torchvision/mobilenet_v2"), "neck": "c4"},
            "--neck c4 needs the four stages of a ResNet",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(make_config: Make, changes: dict, words: str) -> None:
    config = make_config(**changes)
    with pytest.raises(ValueError, match=words):
        finetune(config)
    assert not config.out.exists(), "nothing was begun"


def test_class_names_may_look_like_formulas(tmp_path: Path) -> None:
    """matplotlib reads dollar signs as mathematics."""
    file = tmp_path / "a.png"
    Image.new("RGB", (64, 48)).save(file)
    one = Detections(boxes=np.array([[1.0, 2, 30, 40]]), scores=np.array([0.9]), labels=np.array([0]))
    draw_overlay(tmp_path / "b.png", file, one, ["$_$^"])
    assert Image.open(tmp_path / "b.png").size == (64, 48)


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_image_that_its_exif_tag_turns_is_predicted_upright(
    make_config: Make, boxed: Path, tmp_path: Path, orientation: int
) -> None:
    out = finetune(make_config(steps=1))
    upright, tags = Image.open(boxed / "images" / "val" / "00.png").convert("RGB"), Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    found = []
    for name, image, options in (("upright", upright, {}), ("turned", upright.transpose(turn), {"exif": tags})):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png", **options)
        predict(out, tmp_path / name, tmp_path / f"found-{name}", score=0.0, device="cpu")
        found.append(json.loads((tmp_path / f"found-{name}" / "detections.json").read_text()))
        assert Image.open(tmp_path / f"found-{name}" / "overlays" / "a.png").size == upright.size
    assert found[0] == found[1] and found[0]["annotations"]
    assert (found[1]["images"][0]["width"], found[1]["images"][0]["height"]) == upright.size


def test_images_to_predict_are_checked_first(
    make_config: Make, boxed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finetune(make_config(steps=1))
    (tmp_path / "twins").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.open(boxed / "images" / "val" / "00.png").save(tmp_path / "twins" / name)
    with pytest.raises(ValueError, match=r"would share the PNG a.png: rename one of them"):
        predict(out, tmp_path / "twins", tmp_path / "found", device="cpu")
    Image.new("RGB", (200, 2)).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match=r"1 images are too thin for a detector, the first is .*strip.png, 200 x 2 px"):
        predict(out, tmp_path / "strip.png", tmp_path / "found", device="cpu")
    (tmp_path / "twins" / "c.png").write_text("no image")
    with pytest.raises(BrokenImageError, match=r"c.png cannot be read as an image"):
        predict(out, tmp_path / "twins" / "c.png", tmp_path / "found", device="cpu")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenImageError, match=r"a.png cannot be read as an image: Image size"):
        predict(out, tmp_path / "twins" / "a.png", tmp_path / "found", device="cpu")
    assert not (tmp_path / "found").exists()


def test_a_run_that_names_a_program_is_executed_only_if_trusted(make_config: Make, boxed: Path, tmp_path: Path) -> None:
    out, images, found = finetune(make_config(steps=1)), boxed / "images" / "val", tmp_path / "found"
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"framework_config": "evil.py", "backend": "detectron2"}))
    words = r"run was trained with --framework-config evil.py, a program that this command executes: pass --trust-run"
    with pytest.raises(ValueError, match=words):
        predict(out, images, found, device="cpu")
    with pytest.raises(ValueError, match=words):
        resume(out)
    assert not found.exists()


def test_without_category_ids_the_classes_are_counted_from_1(
    make_config: Make, boxed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a run of version 0.2."""
    out = finetune(make_config(steps=1))
    results = json.loads((out / "results.json").read_text())
    assert results["extra"].pop("category_ids") == [3, 7] and results["extra"].pop("notes") == []
    (out / "results.json").write_text(json.dumps(results))
    found = predict(out, boxed / "images" / "val", tmp_path / "found", device="cpu")
    assert [entry["id"] for entry in json.loads((found / "detections.json").read_text())["categories"]] == [1, 2]
    assert "does not hold the data set's category ids: they are counted from 1" in capsys.readouterr().err


def test_missing_masks_are_named(make_config: Make, boxed: Path) -> None:
    for part in ("train", "val"):
        file = boxed / "annotations" / f"{part}.json"
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            del entry["segmentation"]
        file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"needs a mask with every box: \d+ have none, the first is box 1 of .*00.png"):
        finetune(make_config(detector="mask-rcnn"))


def test_the_learning_rate_rises_and_falls_as_detectron2s_does() -> None:
    rates = [lr_multiplier(step, steps=90, warmup=10, drops=(2 / 3, 8 / 9)) for step in (0, 5, 10, 59, 60, 79, 80, 89)]
    assert rates == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert lr_multiplier(70, steps=90, warmup=100, drops=(2 / 3,)) == pytest.approx(0.7003), "the rise knows of no drop"


@pytest.mark.parametrize("clip", [0.0, 1e-9])
def test_a_clipped_gradient_moves_nothing(make_config: Make, clip: float) -> None:
    out = finetune(make_config(clip=clip, weight_decay=0.0, steps=1, warmup=0))
    first, last = (load_file(out / folder / "model.safetensors") for folder in ("initial", "checkpoint"))
    apart = (first["layer3.2.conv2.weight"] - last["layer3.2.conv2.weight"]).abs().max()
    assert (apart < 1e-8) == bool(clip)


def test_a_run_of_an_older_version_keeps_its_order_of_the_images(make_config: Make) -> None:
    content = json.loads(config_to_json(make_config()))
    del content["order"]
    assert config_from_json(json.dumps(content), DetectConfig).order == 1
