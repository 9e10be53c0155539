"""Detection with the real Detectron2; it is in no package index, so these run wherever it is importable."""

import contextlib
import copy
import io
import itertools
import json
import pickle
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("detectron2", reason="Detectron2 is not installed: see its own documentation")
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import hooks
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver import LRMultiplier
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from predicted import assert_predicted_as_evaluated
from pycocotools import mask as rle
from torchvision.transforms.v2.functional import pil_to_tensor

from stillroom.backbone import (
    Backbone,
    CheckpointError,
    build_backbone,
    load_checkpoint,
    replace_input,
    save_checkpoint,
)
from stillroom.det_transfer import DetectConfig, compute_metrics, finetune, predict, resume, voc_ap
from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.backends.detectron2 import train as d2_train
from stillroom.det_transfer.backends.detectron2.detectors import build_model, describe_wrapper
from stillroom.det_transfer.backends.detectron2.hooks import ClipGradients
from stillroom.det_transfer.backends.detectron2.images import PictureMapper, as_records
from stillroom.det_transfer.backends.detectron2.nets import ExtraNorm, StillroomBackbone, boxes_in_float32
from stillroom.det_transfer.backends.detectron2.recipe import build_config
from stillroom.det_transfer.backends.detectron2.saved import load_saved_config
from stillroom.det_transfer.backends.detectron2.train import trim_metrics
from stillroom.det_transfer.backends.detectron2.user_config import (
    adopt_bridge,
    check_features,
    describe_differences,
    from_records,
    load_user_config,
    read_user_data,
)
from stillroom.det_transfer.config import check
from stillroom.det_transfer.data import read_data
from stillroom.det_transfer.detections import Detections
from stillroom.det_transfer.presets import PRESETS
from stillroom.det_transfer.record import non_default_settings
from stillroom.det_transfer.schedule import lr_multiplier
from stillroom.images import BrokenImageError
from stillroom.images.decode import load_image
from stillroom.runs import Run, read_results
from stillroom.runs.run import DivergedError
from twins import assert_bit_equal, in_a_process

pytestmark = pytest.mark.detectron2

Make = Callable[..., DetectConfig]
Lively = Callable[[str], Backbone]


@pytest.fixture
def make(make_config: Make) -> Make:
    """A run of seconds with Detectron2, whose own ResNet takes the weights of torchvision's."""
    return partial(make_config, backend="detectron2", checkpoint=("random:torchvision/resnet18",))


def cross(config: DetectConfig, backbone: Backbone) -> tuple[Any, Any]:
    """The backbone in a detector of two classes."""
    cfg, bridge = build_model(config, backbone.spec, 2, synced=False)
    model = instantiate(cfg)
    bridge.load(model, backbone)
    return model.eval(), bridge


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-6 * a.abs().max())


@pytest.mark.parametrize("norm", ["bn", "frozen"])
@pytest.mark.parametrize(
    "name",
    [
        "torchvision/resnet18",
        "torchvision/resnet34",
        "torchvision/resnet50",
        "timm/resnet101",
        "timm/convnext_atto",
        "torchvision/mobilenet_v2",
        "timm/mobilenetv2_100",
    ],
)
def test_every_level_is_equal(make: Make, lively: Lively, name: str, norm: str) -> None:
    backbone = lively(name)
    model, _ = cross(make(norm=norm), backbone)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = backbone(images).maps, model.backbone.bottom_up(images)
    assert len(ours) == len(theirs) == 4
    assert all(close(a, b) for a, b in zip(ours, theirs.values(), strict=True))
    shapes = model.backbone.bottom_up.output_shape().values()
    assert [(s.channels, s.stride) for s in shapes] == [(lv.channels, lv.stride) for lv in backbone.spec.levels]


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet34", "torchvision/resnet50"])
def test_c4_uses_the_last_stage_as_the_head(make: Make, lively: Lively, name: str) -> None:
    backbone = lively(name).at("after")
    model, _ = cross(make(neck="c4"), backbone)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = backbone(images)
        ((_, map_),) = model.backbone(images).items()
        assert close(features.maps[2], map_)
        assert close(features.pooled, model.roi_heads.res5(map_).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("name", "changes", "aside"),
    [
        ("torchvision/resnet18", {}, 0),
        ("torchvision/resnet50", {"norm": "frozen"}, 53),
        ("torchvision/resnet18", {"neck": "c4"}, 0),
        ("timm/resnet34", {"neck": "c4", "norm": "frozen"}, 36),
        ("torchvision/mobilenet_v2", {}, 0),
        ("timm/convnext_atto", {"detector": "retinanet"}, 0),
        ("timm/vit_tiny_patch16_224", {}, 0),
        ("torchvision/resnet18", {"neck": "c4", "legacy": "std-1"}, 2),
    ],
)
def test_a_round_trip_is_equal_to_the_bit(make: Make, lively: Lively, name: str, changes: dict, aside: int) -> None:
    backbone = lively(name)
    model, bridge = cross(make(**changes), backbone)
    assert len(bridge.to_framework(backbone)[1]) == aside
    returned = bridge.from_framework(model.state_dict(), backbone)
    expected, found = backbone.net.state_dict(), returned.net.state_dict()
    assert expected.keys() == found.keys() and returned.spec == backbone.spec
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def plain(name: str) -> str:
    """A tensor of Detectron2's last stage under torchvision's name."""
    name = name.removeprefix("roi_heads.res5.stage.").replace("shortcut.norm", "downsample.1")
    return re.sub(r"conv(\d)\.norm", r"bn\1", name.replace("shortcut.", "downsample.0."))


def test_legacy_loads_23_of_50_tensors_and_the_plain_head_25_of_25(make: Make, lively: Lively) -> None:
    """Only tensors of the last stage are counted, without batch counters."""
    backbone = lively("torchvision/resnet18")
    for legacy, ours, all_of_them in (("std-1", 23, 50), ("none", 25, 25)):
        model, bridge = cross(make(neck="c4", legacy=legacy), backbone)
        head = "roi_heads.res5.stage." if legacy != "none" else "roi_heads.res5."
        names = [n for n in model.state_dict() if n.startswith(head) and "num_batches" not in n]
        own = [name for name in names if bridge.contains(name)]
        assert (len(own), len(names)) == (ours, all_of_them)
        if legacy != "none":
            theirs = {plain(name): tuple(model.state_dict()[name].shape) for name in names}
            last = {key.removeprefix("layer4."): tuple(t.shape) for key, t in backbone.net.state_dict().items()}
            assert sum(last.get(name) == shape for name, shape in theirs.items()) == 23, "by name and shape"
    assert bridge.count(model) == "100 of 100 tensors of the backbone come from the checkpoint"


def test_tensors_that_do_not_fit_are_named(make: Make, lively: Lively) -> None:
    model, bridge = cross(make(), lively("torchvision/resnet18"))
    with pytest.raises(CheckpointError, match=r"do not fit the checkpoint's: backbone.bottom_up.res2.0.conv3"):
        bridge.load(model, build_backbone("torchvision/resnet50"))
    for name, changes, words in (
        ("timm/resnet50c", {"neck": "c4"}, "--neck c4 needs a ResNet that Detectron2 has"),
        ("torchvision/mobilenet_v2", {"neck": "c4"}, "--neck c4 needs the four stages of a ResNet"),
        (
            "torchvision/resnet50",
            {"neck": "c4", "legacy": "std-1"},
            "--legacy with --neck c4 needs torchvision/resnet18",
        ),
        ("timm/vit_tiny_patch16_224", {"detector": "retinanet"}, "retinanet takes maps of several strides"),
        ("timm/vit_tiny_patch16_224", {"fpn_norm": "gn"}, "a net of one stride, has layer norms: leave --fpn-norm out"),
    ):
        with pytest.raises(ValueError, match=words):
            build_model(make(**changes), build_backbone(name).spec, 2, synced=False)


def test_pixels_are_normalised_as_the_checkpoint_or_kdep_does(make: Make) -> None:
    spec = build_backbone("torchvision/resnet18").spec
    plain = build_model(make(), spec, 2, synced=False)[0]
    assert list(plain.pixel_mean) == pytest.approx([123.675, 116.28, 103.53])
    assert list(plain.pixel_std) == pytest.approx([58.395, 57.12, 57.375]) and plain.input_format == "RGB"
    turned = build_model(make(legacy="rgb-mean"), spec, 2, synced=False)[0]
    assert list(turned.pixel_mean) == [123.675, 116.28, 103.53] and turned.input_format == "BGR"
    bare = build_model(make(legacy="std-1"), spec, 2, synced=False)[0]
    assert list(bare.pixel_mean) == [103.53, 116.28, 123.675] and list(bare.pixel_std) == [1, 1, 1]


def trained(out: Path) -> dict[str, torch.Tensor]:
    """Weights of the whole detector, from Detectron2's own file."""
    return torch.load(out / "model_final.pth", map_location="cpu", weights_only=True)["model"]


def test_a_run_leaves_a_config_that_detectron2_runs(make: Make, lively: Lively, tmp_path: Path) -> None:
    config = make()
    out = finetune(config)
    results = read_results(out)
    assert results.protocol.startswith("detection/v1 detectron2 faster-rcnn-fpn norm=bn fpn-dim=16")
    assert results.seconds > 0
    assert set(results.extra["ap_per_class"]) == {"blue", "red"}
    last, manifest = load_checkpoint(out / "checkpoint")
    assert manifest.method == "supervised"
    assert torch.equal(last.net.conv1.weight, trained(out)["backbone.bottom_up.stem.conv1.weight"])
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "lr"} <= rows[-1].keys()

    cfg = LazyConfig.load(str(out / "config.yaml"))
    model = instantiate(cfg.model)
    DetectionCheckpointer(model).load(str(out / "model_final.pth"))
    found = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    assert found["bbox"]["AP50"] == pytest.approx(100 * results.metrics["AP50"], abs=1e-9)
    fresh = instantiate(cfg.model)
    incompatible = DetectionCheckpointer(fresh).load(cfg.train.init_checkpoint)
    assert incompatible == {}
    first, _ = load_checkpoint(out / "initial")
    assert torch.equal(fresh.backbone.bottom_up.res4[0].conv1.weight, first.net.layer3[0].conv1.weight)

    boxes = predict(out, config.data / "images" / "val", tmp_path / "found", score=0.0, device="cpu")
    content = json.loads((boxes / "detections.json").read_text())
    expected = json.loads((out / "predictions.json").read_text())
    assert [row["score"] for row in content["annotations"] if row["image_id"] == 1] == pytest.approx(
        [row["score"] for row in expected if row["image_id"] == 100], abs=1e-6
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("torchvision/mobilenet_v2", {"norm": "frozen", "legacy": "std-1"}),
        ("timm/convnext_atto", {"detector": "retinanet", "lr": 0.01}),
        ("cifar/resnet20", {"frozen": True, "fpn_norm": "gn", "fpn_dim": 32}),
        ("torchvision/resnet18", {"frozen": True}),
        ("torchvision/resnet18", {"neck": "c4"}),
        ("torchvision/resnet18", {"neck": "c4", "legacy": "rgb-mean", "detector": "mask-rcnn"}),
        ("torchvision/resnet18", {"detector": "mask-rcnn"}),
        ("timm/vit_tiny_patch16_224", {"train_sizes": (64,), "clip": 1.0}),
    ],
)
def test_detectors_and_backbones_train(make: Make, name: str, changes: dict) -> None:
    out = finetune(make(checkpoint=(f"random:{name}",), steps=2, **changes))
    first, last = (load_file(out / folder / "model.safetensors") for folder in ("initial", "checkpoint"))
    assert first.keys() == last.keys()
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    assert bool(moved) != changes.get("frozen", False)
    if changes.get("norm") == "frozen":
        assert not any("running" in key for key in moved)
    assert ("maskAP" in read_results(out).metrics) == (changes.get("detector") == "mask-rcnn")


def test_a_run_stopped_by_sigkill_ends_equal_to_the_bit(make: Make, tmp_path: Path) -> None:
    config, whole = make(steps=12, workers=1, save_every=4), tmp_path / "whole"
    undisturbed = in_a_process(partial(finetune, replace(config, out=whole)))
    undisturbed.join()
    assert undisturbed.exitcode == 0
    killed = in_a_process(partial(finetune, config))
    log, deadline = config.out / "metrics.json", time.monotonic() + 120
    while not (log.exists() and '"iteration": 5' in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.join()
    assert (config.out / "last_checkpoint").exists() and not (config.out / "results.json").exists()
    resumed = in_a_process(partial(resume, config.out))
    resumed.join()
    assert resumed.exitcode == 0
    assert_bit_equal(trained(whole), trained(config.out))
    assert read_results(whole).metrics == read_results(config.out).metrics


@pytest.mark.parametrize("warmup", [10, 80])  # the second one reaches behind the first drop
def test_the_learning_rate_equals_the_other_backends(make: Make, lively: Lively, run: Run, warmup: int) -> None:
    config = make(steps=90, warmup=warmup)
    cfg, _ = build_config(config, run, lively("torchvision/resnet18"), 2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    multiplier = LRMultiplier(optimizer, instantiate(cfg.lr_multiplier), config.steps)
    for step in range(config.steps):
        rate = lr_multiplier(step, steps=config.steps, warmup=config.warmup, drops=config.drops)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-9), step
        optimizer.step()
        multiplier.step()


def test_a_loss_that_is_nan_or_infinite_stops_the_run(make: Make) -> None:
    with pytest.raises(DivergedError, match=r"the loss is not finite at step \d+: lower --lr; the last good state is"):
        finetune(make(steps=8, lr=1e20, warmup=0, save_every=1))


@pytest.mark.parametrize("save_every", [1, 100])
def test_weights_that_are_nan_or_infinite_are_not_saved(make: Make, save_every: int) -> None:
    """Even when no line that shows the loss was logged."""
    config = make(steps=6, lr=1e12, warmup=0, save_every=save_every, log_every=20, detector="retinanet")
    with pytest.raises(DivergedError, match=r"not finite at step \d+: lower --lr"):
        finetune(config)
    for file in config.out.glob("model_*.pth"):
        state = torch.load(file, map_location="cpu", weights_only=True)["model"]
        assert all(tensor.isfinite().all() for tensor in state.values()), file


def test_every_run_of_a_process_has_a_log_of_its_own(make: Make, tmp_path: Path) -> None:
    first, second = make(steps=1, out=tmp_path / "first"), make(steps=2, out=tmp_path / "second")
    finetune(first)
    before = (first.out / "log.txt").read_text()
    finetune(second)
    assert (first.out / "log.txt").read_text() == before and "iter: 1" in (second.out / "log.txt").read_text()


STORED = Path(__file__).parent / "fixtures" / "config-0.1.3.yaml"
"""The config.yaml of a run of version 0.1.3; RUN stands for its directory."""


def test_a_run_of_an_earlier_version_predicts_and_resumes(make: Make) -> None:
    """Its config.yaml is the stored one, and its states name a hook as they did."""
    config = make(checkpoint=("random:cifar/resnet20",), norm="frozen")
    out = finetune(config)
    uninterrupted, metrics = trained(out), read_results(out).metrics
    (out / "config.yaml").write_text(STORED.read_text().replace("RUN", str(out)))
    for file in out.glob("model_*.pth"):
        state = torch.load(file, map_location="cpu", weights_only=True)
        del state["trainer"]["hooks"]["SeededSteps"]
        state["trainer"]["hooks"]["SteadySteps"] = {"seconds": 1000.0}
        torch.save(state, file)
    assert instantiate(load_saved_config(out).model).backbone.bottom_up.frozen_part == "norms"
    assert_predicted_as_evaluated(config)
    assert load_user_config(out / "config.yaml").dataloader.evaluator["_target_"].endswith("predict.Collector")
    (out / "results.json").unlink()
    (out / "last_checkpoint").write_text("model_0000001.pth")  # as if killed before the next state
    resume(out)
    assert_bit_equal(uninterrupted, trained(out))
    assert read_results(out).metrics == metrics
    assert read_results(out).seconds > 1000, "the time before the resume counts"
    assert "with_detectron2" not in (out / "config.yaml").read_text()


def test_a_pickled_config_of_an_earlier_version_finds_its_classes(tmp_path: Path) -> None:
    cfg = LazyCall(StillroomBackbone)(name="cifar/resnet20", arguments={}, out_features=["level2"], freeze="norms")
    saved = pickle.dumps(cfg, protocol=0)
    assert saved.count(b"det_transfer.backends.detectron2.nets\n") == saved.count(b"freeze\n") == 1
    saved = saved.replace(b"backends.detectron2.nets\n", b"with_detectron2.nets\n").replace(b"freeze\n", b"hold\n")
    (tmp_path / "config.yaml.pkl").write_bytes(saved)
    assert instantiate(load_saved_config(tmp_path)).frozen_part == "norms"


def test_log_lines_after_the_state_are_dropped_on_resume(make: Make) -> None:
    out = finetune(make(steps=4))
    lines = (out / "metrics.json").read_text()
    (out / "results.json").unlink()
    (out / "last_checkpoint").write_text("model_0000001.pth")  # as if killed before the next state
    resume(out)
    steps = [json.loads(line)["iteration"] for line in (out / "metrics.json").read_text().splitlines()]
    assert steps == sorted({*steps}) == [json.loads(line)["iteration"] for line in lines.splitlines()]


def test_an_incomplete_log_line_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n{"iteration": 2}\n{"itera')
    trim_metrics(tmp_path / "metrics.json", 9)
    assert (tmp_path / "metrics.json").read_text() == '{"iteration": 1}\n{"iteration": 2}\n'
    trim_metrics(tmp_path / "metrics.json", 2)
    assert (tmp_path / "metrics.json").read_text() == '{"iteration": 1}\n'


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_during_training_is_named(make: Make, boxed: Path, part: str, workers: int) -> None:
    for file in (boxed / "images" / part).iterdir():
        file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(BrokenImageError, match=r"^/[^\n]*\.png cannot be read as an image: [^\n]*$"):
        finetune(config := make(workers=workers, steps=1))
    assert config.out.exists() == (part == "val"), "refused in its first step, it leaves nothing"


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_images_of_any_mode_are_read_as_by_the_other_backend(tmp_path: Path, order: str) -> None:
    grey = np.random.default_rng(0).integers(0, 65536, (9, 8), dtype=np.uint16)
    clear = np.random.default_rng(0).integers(0, 256, (9, 8, 4), dtype=np.uint8)
    mapper = PictureMapper(is_train=False, augmentations=[], image_format=order)
    for name, image in (("grey.png", Image.fromarray(grey)), ("clear.png", Image.fromarray(clear))):
        image.save(tmp_path / name)
        expected = pil_to_tensor(load_image(tmp_path / name))
        found = mapper({"file_name": str(tmp_path / name)})
        assert torch.equal(found["image"], expected if order == "RGB" else expected.flip(0))
        assert (found["height"], found["width"]) == (9, 8)


def test_kdeps_c4_is_evaluated_with_precise_statistics(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results also count the head's tensors that come from the checkpoint."""
    config = make(neck="c4", legacy="std-1", steps=3, lr=0.0)
    out = finetune(config)
    assert "(roi_heads.res5.stage: 23 of 50)" in read_results(out).extra["loaded"]
    precise = trained(out)["backbone.stem.conv1.norm.running_mean"]
    cfg, model = LazyConfig.load(str(out / "config.yaml")), torch.nn.BatchNorm2d(3)
    assert d2_train.build_precise_bn(model, cfg, replace(config, steps=1000))._num_iter == 200, "batches"
    assert d2_train.build_precise_bn(model, cfg, replace(config, legacy="none")) is None
    monkeypatch.setattr(hooks.PreciseBN, "update_stats", lambda self: None)
    plain = trained(finetune(replace(config, out=out.parent / "plain")))["backbone.stem.conv1.norm.running_mean"]
    share = 1 - 0.9**3  # of what momentum 0.1 has forgotten of the first 0 in three steps
    assert torch.allclose(plain, share * precise, rtol=0.3, atol=0.05 * float(precise.abs().max()))
    assert not torch.allclose(plain, precise, rtol=0.3, atol=0.05 * float(precise.abs().max()))


def test_the_wrapper_synchronises_batch_norms_unless_frozen(make: Make) -> None:
    spec = build_backbone("timm/mobilenetv2_100").spec
    for config, synced in ((make(), True), (make(norm="frozen"), False), (make(frozen=True), False)):
        model = instantiate(build_model(config, spec, 2, synced=True)[0])
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()) == synced


def test_pixels_come_in_the_checkpoints_order(make: Make, tmp_path: Path) -> None:
    first = replace_input(build_backbone("torchvision/resnet18"), channel_order="bgr", value_range=(-1.0, 1.0))
    cfg = build_model(make(), first.spec, 2, synced=False)[0]
    mean, std = first.spec.input.mean, first.spec.input.std
    assert list(cfg.pixel_mean) == pytest.approx([127.5 * (value + 1) for value in mean])
    assert list(cfg.pixel_std) == pytest.approx([127.5 * value for value in std]) and cfg.input_format == "BGR"
    save_checkpoint(tmp_path / "bgr", first, method="random", package="test")
    config = make(checkpoint=(str(tmp_path / "bgr"),), steps=1)
    finetune(config)
    assert_predicted_as_evaluated(config)
    (sample,) = itertools.islice(instantiate(LazyConfig.load(str(config.out / "config.yaml")).dataloader.test), 1)
    pixels = np.asarray(Image.open(sample[0]["file_name"]))
    assert np.abs(sample[0]["image"].float().mean((1, 2)).numpy() - pixels.mean((0, 1))[::-1]).max() < 2


def test_norms_are_not_decayed(make: Make, lively: Lively, run: Run) -> None:
    cfg, _ = build_config(make(weight_decay=0.1), run, lively("timm/mobilenetv2_100"), 2)
    cfg.optimizer.params.model = instantiate(cfg.model)
    names = {id(parameter): name for name, parameter in cfg.optimizer.params.model.named_parameters()}
    groups = instantiate(cfg.optimizer).param_groups
    decay = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay["backbone.bottom_up.net.net.bn1.weight"] == 0
    assert decay["backbone.bottom_up.net.net.conv_stem.weight"] == 0.1


def test_norms_of_a_pyramid_of_one_map_are_not_decayed(make: Make, run: Run) -> None:
    cfg, _ = build_config(make(weight_decay=0.1), run, build_backbone("timm/vit_tiny_patch16_224"), 2)
    cfg.optimizer.params.model = instantiate(cfg.model)
    groups = instantiate(cfg.optimizer).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    levels = {n: p for n, p in cfg.optimizer.params.model.named_parameters() if n.startswith("backbone.simfp")}
    norms = [decay[id(p)] for n, p in levels.items() if ".norm." in n or n == "backbone.simfp_2.1.weight"]
    assert len(norms) == 17 and set(norms) == {0}
    assert all(decay[id(p)] == 0.1 for p in levels.values() if p.ndim == 4)


def guesses(images: Images) -> list[Detections]:
    """True boxes, some moved, and false ones; coordinates of one decimal and scores of three, as VOC's files have."""
    rng, found = np.random.default_rng(5), []
    for row in images.rows:
        true = row.xyxy.astype(float)
        boxes = np.concatenate([true + rng.normal(0, 2, true.shape), true + rng.normal(0, 5, true.shape)]).round(1)
        labels, order = np.concatenate([row.labels, rng.integers(0, 2, len(true))]), rng.permutation(len(boxes))
        scores = np.sort(rng.permutation(1000)[: len(boxes)] / 1000)[::-1].copy()
        found.append(Detections(boxes=boxes[order], scores=scores, labels=labels[order]))
    return found


def test_the_same_predictions_give_the_ap_of_detectron2s_evaluator(make: Make, boxed: Path, tmp_path: Path) -> None:
    data = read_data(make())
    found = guesses(data.val)
    name = f"boxed-{tmp_path}"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(json_file=str(boxed / "annotations" / "val.json"), evaluator_type="coco")
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {3: 0, 7: 1}
    MetadataCatalog.get(name).thing_classes = list(data.classes)
    evaluator = COCOEvaluator(name, tasks=("bbox",), use_fast_impl=False)
    evaluator.reset()
    for row, one in zip(data.val.rows, found, strict=True):
        instances = Instances((row.height, row.width))
        instances.pred_boxes = Boxes(torch.from_numpy(one.boxes).double())
        instances.scores, instances.pred_classes = torch.from_numpy(one.scores), torch.from_numpy(one.labels)
        evaluator.process([{"image_id": row.id}], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = evaluator.evaluate()["bbox"]
    ours = compute_metrics(data.val, found, data.classes)
    assert 5 < theirs["AP"] < 95
    for key in ("AP", "AP50", "AP75", "APs"):
        assert 100 * ours.metrics[key] == pytest.approx(theirs[key], abs=1e-5)  # their boxes are float32
    for label in data.classes:
        assert 100 * ours.per_class[label] == pytest.approx(theirs[f"AP-{label}"], abs=1e-5)


def test_voc_ap_is_that_of_detectron2s_evaluator(make_config: Make, voc: Path, tmp_path: Path) -> None:
    for xml in sorted((voc / "Annotations").glob("*.xml"))[6:8]:
        text = xml.read_text().replace("<difficult>0", "<pose>x</pose><truncated>0</truncated><difficult>0")
        xml.write_text(text.replace("<difficult>0", "<difficult>1", 1))
    last = voc / "Annotations" / "008.xml"
    last.write_text(last.read_text().replace("<difficult>", "<pose>x</pose><truncated>0</truncated><difficult>"))
    data = read_data(make_config(data=voc, layout="voc"))
    found, seen = guesses(data.val), []
    for label, name in enumerate(data.classes):
        lines = [
            f"{row.file.stem} {score:.3f} {x0 + 1:.1f} {y0 + 1:.1f} {x1:.1f} {y1:.1f}"
            for row, one in zip(data.val.rows, found, strict=True)
            for (x0, y0, x1, y1), score, kind in zip(one.boxes.tolist(), one.scores, one.labels, strict=True)
            if kind == label
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
        for (metric_07, kind), iou in itertools.product(((False, "area"), (True, "eleven")), (0.5, 0.75)):
            *_, theirs = voc_eval(
                str(tmp_path / "{}.txt"),
                str(voc / "Annotations" / "{}.xml"),
                str(voc / "ImageSets" / "Main" / "val.txt"),
                name,
                ovthresh=iou,
                use_07_metric=metric_07,
            )
            assert getattr(voc_ap(data.val, found, label, iou), kind) == pytest.approx(theirs, abs=1e-9)
            seen.append(theirs)
    assert 0.1 < np.mean(seen) < 0.9 and len({*seen}) > 3


@pytest.mark.parametrize("changes", [{"norm": "frozen"}, {"frozen": True, "steps": 3}, {"norm": "bn", "lr": 0.1}])
def test_two_processes_train_one_net(make: Make, in_two_processes: Callable, changes: dict) -> None:
    config = make(**({"steps": 2, "batch_size": 4, "rois": 4} | changes))
    assert in_two_processes(lambda: str(finetune(config))) == [str(config.out)] * 2
    assert read_results(config.out).datasets["test"].count == 4
    assert_predicted_as_evaluated(config)


def test_a_yaml_of_detectron2_names_our_backbone_or_its_checkpoint(tmp_path: Path) -> None:
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model as build

    from stillroom.det_transfer.backends.detectron2.nets import add_stillroom_config

    cfg = get_cfg()
    add_stillroom_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.NAME = "cpu", "build_stillroom_fpn_backbone"
    cfg.MODEL.STILLROOM.NAME = "timm/mobilenetv2_100"
    cfg.MODEL.FPN.IN_FEATURES = ["level2", "level3", "level4", "level5"]
    cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = (
        ["p2", "p3", "p4", "p5", "p6"],
        ["p2", "p3", "p4", "p5"],
    )
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model = build(cfg)
    assert [s.stride for s in model.backbone.output_shape().values()] == [4, 8, 16, 32, 64]
    assert copy.deepcopy(model.backbone.bottom_up).net.spec.name == "timm/mobilenetv2_100"

    backbone = build_backbone("timm/mobilenetv2_100", arguments={"pad_type": "same"}).eval()
    save_checkpoint(tmp_path / "net", backbone, method="random", package="test")
    cfg.MODEL.STILLROOM.CHECKPOINT = str(tmp_path / "net")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours = backbone(images).maps[-4:]
        found = build(cfg).backbone.bottom_up.eval()(images)
        model.backbone.bottom_up.net.load_state_dict(backbone.state_dict())
        bare = model.backbone.bottom_up.eval()(images)
    assert all(torch.equal(a, b) for a, b in zip(ours, found.values(), strict=True))
    assert not any(close(a, b) for a, b in zip(ours, bare.values(), strict=True)), "its tensors alone are not enough"


OWN = """
from detectron2 import model_zoo
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json

ROOT, NAMES = {root!r}, ["blue", "red"]
for part in ("train", "val"):
    name = f"own-{{part}}-{{ROOT}}"
    if name not in DatasetCatalog.list():
        files = (f"{{ROOT}}/annotations/{{part}}.json", f"{{ROOT}}/images/{{part}}")
        DatasetCatalog.register(name, lambda files=files, name=name: load_coco_json(*files, name))
        MetadataCatalog.get(name).set(thing_classes=NAMES, json_file=files[0])

whole = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
model, dataloader, optimizer = whole.model, whole.dataloader, whole.optimizer
lr_multiplier, train = whole.lr_multiplier, whole.train
model.num_classes = 2
model.backbone.bottom_up.stages.stride_in_1x1 = {strides}
model.backbone.bottom_up.freeze_at = 2
dataloader.train.dataset.names, dataloader.test.dataset.names = f"own-train-{{ROOT}}", f"own-val-{{ROOT}}"
dataloader.train.mapper.augmentations[0].short_edge_length = [48]
dataloader.test.mapper.augmentations[0].short_edge_length = 48
dataloader.train.total_batch_size, dataloader.train.num_workers = 2, 0
optimizer.lr, train.max_iter, train.log_period = 0.001, 2, 1
"""


def adopt(file: Path) -> DetectConfig:
    """A run with a user's LazyConfig."""
    out = file.parent / "run"
    return DetectConfig(
        checkpoint=("random:torchvision/resnet50",), framework_config=file, out=out, device="cpu", workers=0
    )


def test_a_user_config_gets_our_weights(boxed: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN.format(root=str(boxed), strides=False))
    config = adopt(file)
    out = finetune(config)
    results = read_results(out)
    assert {row["category_id"] for row in json.loads((out / "predictions.json").read_text())} <= {3, 7}
    assert results.protocol.startswith("detection/v1 detectron2 framework-config=own.py sha256=")
    assert (results.datasets["train"].count, results.datasets["test"].count) == (9, 4)
    assert results.extra["classes"] == ["blue", "red"]
    assert results.extra["images"] == {"decoder": "that of own.py"}
    assert results.extra["loaded"] == "265 of 265 tensors of the backbone come from the checkpoint"
    first, last = (load_file(out / folder / "model.safetensors") for folder in ("initial", "checkpoint"))
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    assert any(key.startswith("layer4") for key in moved), "it was trained"
    assert not any(key.startswith(("conv1", "bn1", "layer1")) for key in moved), "as far as the config freezes"
    with pytest.raises(ValueError, match=r"the config's backbone is a ResNet, which has no rules for timm/convnext"):
        finetune(replace(config, checkpoint=("random:timm/convnext_atto",), out=tmp_path / "b"))
    own = OWN.format(root=str(boxed), strides=False)
    lists = "dataloader.test.dataset.names = [dataloader.test.dataset.names]"
    for more, words in (
        ("model.num_classes = 80", "the config's model predicts 80 classes, its data has 2"),
        ("model.backbone.out_channels = 'x'", "the model of .*own.py cannot be built: "),
        ("train.amp.enabled = True", "train.amp.enabled needs a GPU"),
        ("del train.checkpointer", "own.py has no train.checkpointer.period: expected a LazyConfig of Detectron2"),
        (f"{lists}; model.num_classes = 80", "the config's model predicts 80 classes, its data has 2"),
        ("model.head_in_features = ['p9']", r"the model of .*own.py fails on .*val/00.png: 'p9'"),
    ):
        file.write_text(f"{own}\n{more}\n")
        with pytest.raises(ValueError, match=words):
            finetune(replace(config, out=tmp_path / "early"))
        assert not (tmp_path / "early").exists(), "as if nothing had been asked"
    file.write_text(OWN.format(root=str(boxed), strides=True))
    with pytest.raises(ValueError, match=r"strides in 1x1 convolutions, ours in 3x3: set stride_in_1x1=False"):
        finetune(replace(config, out=tmp_path / "c"))
    for words in ("model = = 1", "model = absent", "import absent", "assert 1 > 2"):
        file.write_text(words)
        with pytest.raises(ValueError, match=r"own.py cannot be read as a LazyConfig: "):
            finetune(replace(config, out=tmp_path / "f"))
    for words, fault in (("{a: [", "cannot be read as a LazyConfig: "), ("", "has no model: expected a LazyConfig of")):
        (tmp_path / "own.yaml").write_text(words)
        with pytest.raises(ValueError, match=f"own.yaml {fault}"):
            finetune(replace(config, framework_config=tmp_path / "own.yaml", out=tmp_path / "g"))
    file.write_text("model = 1")
    with pytest.raises(ValueError, match=r"own.py has no model: expected a LazyConfig of Detectron2"):
        finetune(replace(config, out=tmp_path / "d"))
    with pytest.raises(ValueError, match=r"there is no .*absent.py"):
        finetune(replace(config, framework_config=tmp_path / "absent.py", out=tmp_path / "e"))
    check(config, world_size=3, on_cpu=True)  # the config's own batch is shared, not ours
    with pytest.raises(
        ValueError, match=r"--data is .*boxed, .* has no effect beside --framework-config: leave it out"
    ):
        finetune(replace(config, data=boxed, out=tmp_path / "h"))


def test_a_user_config_is_compared_with_the_checkpoint(
    boxed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    own = OWN.format(root=str(boxed), strides=False)
    file.write_text(own)
    config = adopt(file)
    out = finetune(config)
    normalised, unused = read_results(out).extra["notes"]
    assert normalised == (
        "the config does not normalise images as the checkpoint does: input_format is BGR, the checkpoint's RGB; "
        "pixel_std is [1.0, 1.0, 1.0], the checkpoint's [57.375, 57.12, 58.395] in that order of channels"
    )
    for name in ("train.eval_period", "train.init_checkpoint", "train.device", "dataloader.evaluator"):
        assert name in unused
    assert "train.max_iter" not in unused and "these settings of the config have no effect" in unused
    said = capsys.readouterr().err
    assert f"note: {normalised}\n" in said and f"note: {unused}\n" in said
    with pytest.raises(ValueError, match="a program that this command executes: pass --trust-run"):
        predict(out, boxed / "images" / "val", tmp_path / "found", device="cpu")
    predict(out, boxed / "images" / "val", tmp_path / "found", score=0.0, device="cpu", trust_run=True)
    content = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert content["categories"] == [{"id": 3, "name": "blue"}, {"id": 7, "name": "red"}]
    input_ = "model.pixel_mean, model.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]"
    spec = build_backbone("torchvision/resnet50").spec
    for role, differs in (("test", True), ("train", False)):  # the test images are read as the training images
        file.write_text(f"{own}\nmodel.input_format = dataloader.{role}.mapper.image_format = 'RGB'\n{input_}\n")
        cfg = load_user_config(file)
        notes = describe_differences(cfg, instantiate(cfg.model), config, spec)
        assert notes[-1] == unused and len(notes) == 1 + differs
        assert not differs or "dataloader.train.mapper.image_format is BGR, the model's input_format RGB" in notes[0]


def test_a_net_of_other_layers_is_refused_though_its_tensors_fit(lively: Lively) -> None:
    backbone = lively("timm/mobilenetv2_100")
    model = torch.nn.Module()
    model.backbone = StillroomBackbone("timm/mobilenetv2_100", {}, ["level2", "level5"])
    bridge = adopt_bridge(backbone.spec, model)
    bridge.load(model, backbone)
    check_features(model, backbone)
    model.backbone.net.net.bn1.act = torch.nn.Identity()
    with pytest.raises(
        ValueError, match=r"does not compute the features of timm/mobilenetv2_100 .*: level2, of stride 4"
    ):
        check_features(model, backbone)
    model.backbone = StillroomBackbone("timm/mobilenetv2_100", {"pad_type": "same"}, ["level2"])
    with pytest.raises(ValueError, match=r"with the arguments {'pad_type': 'same'}, the checkpoint has {}: pass the"):
        adopt_bridge(backbone.spec, model)


def test_a_change_in_what_a_user_config_imports_is_a_change_of_the_config(boxed: Path, tmp_path: Path) -> None:
    file, part = tmp_path / "own.py", tmp_path / "part.py"
    part.write_text("LR = 0.01\n")
    file.write_text(f"{OWN.format(root=str(boxed), strides=False)}\nfrom .part import LR\noptimizer.lr = LR\n")
    first, again = (read_user_data(file).records["framework_config"] for _ in range(2))
    part.write_text("LR = 0.5\n")
    changed = read_user_data(file).records["framework_config"]
    assert first == again and changed.fingerprint == first.fingerprint and changed.content != first.content


def test_missing_files_of_a_user_config_are_named(boxed: Path, tmp_path: Path) -> None:
    file, truth = tmp_path / "own.py", boxed / "annotations" / "val.json"
    file.write_text(OWN.format(root=str(boxed), strides=False))
    (boxed / "images" / "val" / "02.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 test images of .*own.py are missing, the first is .*02.png"):
        read_user_data(file)
    truth.unlink()
    with pytest.raises(ValueError, match=r"the test images of .*own.py cannot be read: .*val.json"):
        read_user_data(file)


def test_no_pickle_of_a_run_directory_is_loaded(make: Make, boxed: Path, tmp_path: Path) -> None:
    config = make(steps=1)
    out = finetune(config)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    for name in ("config.yaml.pkl", "evil.pkl"):
        (out / name).write_bytes(pickle.dumps({"model": Evil(), "__author__": "x"}))
    (out / "config.yaml").write_text(
        f"a: !!python/object/apply:pathlib.Path.touch [!!python/name:x {tmp_path}/executed]"
    )
    assert_predicted_as_evaluated(config)
    (out / "results.json").unlink()
    (out / "last_checkpoint").write_text("evil.pkl")
    with pytest.raises(ValueError, match=r"evil.pkl is a pickle that torch.save did not write: copy the run"):
        resume(out)
    assert not (tmp_path / "executed").exists()


def test_arguments_in_a_manifest_are_neither_called_nor_filled_in(make: Make, tmp_path: Path) -> None:
    spec = build_backbone("timm/mobilenetv2_050").spec
    for value in ({"_target_": "os.mkdir", "path": str(tmp_path / "executed")}, "${oc.create:{_target_:os.getcwd}}"):
        described = describe_wrapper(replace(spec, arguments={"norm_layer": value}), ["level2"], make(), "BN")
        assert json.loads(described.arguments) == {"norm_layer": value}
        with pytest.raises((ValueError, KeyError, AssertionError)):  # timm's, about the value as it stands
            instantiate(described)
    assert not (tmp_path / "executed").exists()


def test_areas_in_a_user_config_come_from_its_json(boxed: Path, tmp_path: Path) -> None:
    """Detectron2's records leave areas out, and COCO's sizes are those of the objects, not of their boxes."""
    truth, file = boxed / "annotations" / "val.json", tmp_path / "own.py"
    content = json.loads(truth.read_text())
    for entry in content["annotations"]:
        entry["area"] = 100 + entry["id"]
    truth.write_text(json.dumps(content))
    file.write_text(OWN.format(root=str(boxed), strides=False))
    data = read_user_data(file)
    areas = {box.area for row in data.val.rows for box in row.boxes}
    assert areas == {entry["area"] for entry in content["annotations"]}
    assert data.category_ids == (3, 7)


def test_a_user_config_applies_as_it_was_read(boxed: Path, tmp_path: Path) -> None:
    """It may be edited or deleted during the run, and may hold what YAML cannot."""
    file, second = tmp_path / "own.py", "dataloader.test.mapper.augmentations.append(L(T.RandomBrightness)({}, {}))"
    bright = second.format("intensity_min=0.2", "intensity_max=0.2")
    head = "import torch\nimport detectron2.data.transforms as T\nfrom detectron2.config import LazyCall as L\n"
    program = "model.backbone.norm = lambda channels: torch.nn.GroupNorm(32, channels)"
    file.write_text(f"{head}{OWN.format(root=str(boxed), strides=False)}\n{bright}\n{program}\n")
    config = adopt(file)
    digest = sha256(file.read_bytes()).hexdigest()[:12]
    with pytest.MonkeyPatch.context() as patch:
        begin = d2_train.predict_all
        patch.setattr(d2_train, "predict_all", lambda *given: (file.unlink(), begin(*given))[1])
        out = finetune(config)
    assert read_results(out).protocol.endswith(f"framework-config=own.py sha256={digest} weights=last")
    assert_predicted_as_evaluated(replace(config, data=boxed))


def test_records_of_several_folders_keep_their_masks(tmp_path: Path) -> None:
    mask = [[1, 1, 8, 1, 8, 8]]
    entry = {"bbox": [1, 1, 8, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": mask}
    size = {"width": 20, "height": 10}
    records = [
        {"file_name": f"{tmp_path}/{folder}/a.png", "image_id": place, **size, "annotations": [entry]}
        for place, folder in enumerate("AB")
    ]
    records[1]["annotations"] = [{**entry, "iscrowd": 1}, entry]
    records.append({"file_name": f"{tmp_path}/A/b.png", "image_id": 2, **size})
    found = from_records(records, {(0, 1, 1, 8, 8): 30.0})
    assert [box.area for box in found.rows[0].boxes] == [30]
    assert found.rows[1].boxes[0].area == rle.area(found.rows[1].boxes[0].mask) > 0
    assert [[box.crowd for box in row.boxes] for row in found.rows] == [[False], [True, False], []]
    assert [len(record["annotations"]) for record in as_records(found)] == [1, 1, 0], "nothing is learned from crowds"
    assert found.root == tmp_path and not found.boxes_without_mask
    with pytest.raises(ValueError, match="the config's data set has no images"):
        from_records([], {})


def test_boxes_are_cropped_exactly_under_mixed_precision() -> None:
    """A ramp of whole numbers, which bfloat16 holds; but of 1221, the middle of the box, it makes 1224."""
    net = torch.nn.Sequential(ROIPooler(1, scales=[1 / 16], sampling_ratio=0, pooler_type="ROIAlignV2"))
    boxes_in_float32(net)
    ramp = torch.arange(100).expand(1, 1, 64, 100).bfloat16()
    (found,) = net[0]([ramp], [Boxes(torch.tensor([[1205.0, 100, 1237, 132]]))]).flatten().tolist()
    assert found == pytest.approx(1221 / 16 - 0.5, abs=1e-3)


def test_gradients_are_clipped_by_their_norm() -> None:
    net = torch.nn.Linear(4, 3)
    net(torch.arange(4.0)).sum().backward()
    direction = torch.nn.functional.normalize(net.weight.grad, dim=None)
    ClipGradients(net, 0.5).after_backward()
    assert sum(float(parameter.grad.square().sum()) for parameter in net.parameters()) == pytest.approx(0.25, rel=1e-4)
    assert torch.allclose(torch.nn.functional.normalize(net.weight.grad, dim=None), direction)


@pytest.mark.parametrize(("preset", "strides"), [("legacy-kdep-r18-c4", (2, 1)), ("legacy-kdep-r18-c4-coco", (1, 2))])
def test_kdeps_head_has_its_stride_where_the_config_for_the_data_has_it(
    make: Make, preset: str, strides: tuple[int, int]
) -> None:
    """In the first 1x1 convolution, Detectron2's default, on VOC; in the 3x3 one on COCO."""
    kdeps = PRESETS[preset](checkpoint=("x",), out=Path("x"))
    config = make(neck="c4", legacy=kdeps.legacy, stride_in_1x1=kdeps.stride_in_1x1)
    model = instantiate(build_model(config, build_backbone("torchvision/resnet18").spec, 2, synced=False)[0])
    first = model.roi_heads.res5.stage[0]
    assert (first.conv1.stride[0], first.conv2.stride[0]) == strides
    assert ("stride-in-1x1=True" in non_default_settings(config)) == (strides == (2, 1))


def test_kdeps_head_ends_in_a_norm() -> None:
    torch.manual_seed(0)
    head = ExtraNorm([torch.nn.Conv2d(3, 4, 1)], torch.nn.BatchNorm2d(4))
    maps = head(10 + 5 * torch.randn(8, 3, 6, 6))
    assert torch.allclose(maps.mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(maps.std((0, 2, 3)), torch.ones(4), atol=1e-2)


@pytest.mark.parametrize("clip", [0.0, 1e-9])
def test_a_clipped_gradient_moves_nothing(make: Make, clip: float) -> None:
    out = finetune(make(clip=clip, weight_decay=0.0, steps=1, warmup=0))
    first, last = (load_file(out / folder / "model.safetensors") for folder in ("initial", "checkpoint"))
    apart = (first["layer4.1.conv2.weight"] - last["layer4.1.conv2.weight"]).abs().max()
    assert (apart < 1e-8) == bool(clip)
