"""Segmentation with the real Runner, from images to checkpoint and results."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner
from PIL import Image
from safetensors.torch import load_file

from stillroom.backbone import CheckpointError, build_backbone, load_checkpoint, save_checkpoint
from stillroom.backbone.stopping import Stopped
from stillroom.images import BrokenImageError
from stillroom.runs import read_results
from stillroom.runs.run import DivergedError
from stillroom.seg_transfer import SegmentConfig, finetune, predict, resume
from stillroom.seg_transfer.reproducible import SeededSteps
from twins import assert_bit_equal, in_a_process

Make = Callable[..., SegmentConfig]
RESNET = ("random:torchvision/resnet18",)
"""A net that MMSegmentation has too: of all others it gets a wrapper."""


def trained_model(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights, statistics and heads of MMEngine's own checkpoint."""
    return CheckpointLoader.load_checkpoint(str(out / f"iter_{step}.pth"), map_location="cpu")["state_dict"]


def test_a_run_leaves_a_checkpoint_of_ours_a_config_of_theirs_pictures_and_results(
    make_config: Make, student: Path
) -> None:
    config = make_config(checkpoint=(str(student),), data_licence="CC-BY-NC-4.0", evaluation="slide", flip=True)
    out = finetune(config)
    results = read_results(out)
    assert (results.task, results.seed) == ("segmentation", 0)
    words = "segmentation/v1 psp stride=8 steps=4 batch=2 crop=32 weights=last slide=32 channels=8 flip"
    assert results.protocol == words
    assert 0 <= results.metrics["mIoU"] <= 1
    per_class = results.extra["iou_per_class"]
    assert results.extra["images"] == {"decoder": f"pillow {PIL.__version__}", "exif": "obeyed"}
    assert set(per_class) == {"background", "left", "right"}
    assert results.metrics["mIoU"] == pytest.approx(np.mean(list(per_class.values())))
    assert results.datasets["train"].count == 9 and results.datasets["test"].count == 3
    first, _ = load_checkpoint(student)
    last, manifest = load_checkpoint(out / "checkpoint")
    assert manifest.method == "finetune" and manifest.backbone.licence.restrictions == ("data: CC-BY-NC-4.0",)
    assert last.spec.pre_activation == first.spec.pre_activation
    assert not torch.equal(first.net.conv1.weight, last.net.conv1.weight)
    theirs = {k.removeprefix("backbone."): t for k, t in trained_model(out, 4).items() if k.startswith("backbone.")}
    assert_bit_equal(dict(last.net.state_dict()), theirs)
    assert Image.open(out / "figures" / "sheet.png").size[0] > 500
    resolved = Config.fromfile(str(out / "config.py"))
    assert resolved.model.backbone.init_cfg.checkpoint == str(out / "initial.pth")
    assert resolved.optim_wrapper.paramwise_cfg.custom_keys.decode_head.lr_mult == 10
    with pytest.raises(ValueError, match="exists: choose another --out, or resume it with `resume"):
        finetune(config)
    assert resume(out) == out, "a run that is done is left as it is"

    copied = shutil.copytree(out, out.parent / "copied")
    shutil.move(out, out.parent / "away")  # what MMEngine has written down is no more
    again = predict(copied, config.data / "images" / "val", out.parent / "again", device="cpu")
    shutil.move(out.parent / "away", out)
    masks = predict(out, config.data / "images" / "val", config.out.parent / "masks", device="cpu")
    found = np.asarray(Image.open(masks / "masks" / "00.png"))
    assert found.shape == (32, 40) and found.max() < 3
    assert (found == np.asarray(Image.open(again / "masks" / "00.png"))).all()
    twins = out.parent / "twins"
    twins.mkdir()
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (40, 32)).save(twins / name)
    with pytest.raises(ValueError, match=r"two images of .*twins would share the PNG a.png: rename one of them"):
        predict(out, twins, out.parent / "other", device="cpu")
    assert Image.open(masks / "overlays" / "00.png").size == (40, 32)
    assert (masks / "classes.txt").read_text() == "background\nleft\nright\n"
    with pytest.raises(ValueError, match="masks exists: choose another --out"):
        predict(out, config.data / "images" / "val", masks, device="cpu")
    with pytest.raises(ValueError, match=r"is not a finished run: it has no results.json"):
        predict(config.data, config.data / "images" / "val", config.out.parent / "other", device="cpu")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("random:torchvision/mobilenet_v2", {"head": "fcn"}),
        ("random:torchvision/mobilenet_v2", {"head": "deeplabv3plus", "output_stride": 16}),
        ("random:timm/convnext_atto", {"head": "upernet", "output_stride": 32}),
        ("random:torchvision/resnet18", {"head": "linear", "frozen": True, "aux_weight": 0.0, "weight_decay": 0.0}),
    ],
)
def test_heads_and_backbones_train(make_config: Make, name: str, changes: dict) -> None:
    out = finetune(make_config(checkpoint=(name,), steps=2, crop=64, **changes))
    first, last = (load_file(out / folder / "model.safetensors") for folder in ("initial", "checkpoint"))
    assert first.keys() == last.keys()
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    aside = {key for key in first if key.startswith("features.18.")}
    if changes.get("frozen"):
        assert not moved, "neither weights nor statistics"
    else:
        assert moved and not moved & aside, "what is kept aside comes back as it was"


def test_a_signal_saves_a_state_and_the_same_command_goes_on_to_the_bit(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = make_config(save_every=None, if_exists="resume"), tmp_path / "whole"
    finetune(replace(config, out=whole))
    assert [file.name for file in whole.glob("iter_*.pth")] == ["iter_4.pth"]
    seed = SeededSteps.before_train_iter

    def ask_to_stop(self: SeededSteps, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        seed(self, runner, batch_idx, data_batch)
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Stopped, match="75"):
        patched.setattr(SeededSteps, "before_train_iter", ask_to_stop)
        finetune(config)
    assert [file.name for file in config.out.glob("iter_*.pth")] == ["iter_3.pth"]
    finetune(config)
    assert_bit_equal(trained_model(whole, 4), trained_model(config.out, 4))


@pytest.mark.slow
def test_a_run_stopped_by_sigkill_ends_equal_to_the_bit(make_config: Make, tmp_path: Path) -> None:
    config, whole = make_config(checkpoint=RESNET, steps=6, workers=1), tmp_path / "whole"
    undisturbed = in_a_process(partial(finetune, replace(config, out=whole)))
    undisturbed.join()
    assert undisturbed.exitcode == 0
    killed = in_a_process(partial(finetune, config))
    deadline = time.monotonic() + 120
    while not (config.out / "iter_4.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.join()
    assert not (config.out / "results.json").exists() and not (config.out / "iter_6.pth").exists()
    resumed = in_a_process(partial(resume, config.out))
    resumed.join()
    assert resumed.exitcode == 0
    assert_bit_equal(trained_model(whole, 6), trained_model(config.out, 6))
    first, second = (read_results(out).metrics for out in (whole, config.out))
    assert first == second


@pytest.mark.slow
def test_a_sweep_makes_one_table_and_does_nothing_twice(
    make_config: Make, small_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(checkpoint=("random", str(small_student)), seeds=(0, 1), steps=2)
    out = finetune(config)
    table = json.loads((out / "table.json").read_text())
    assert table["metric"] == "mIoU" and list(table["rows"]) == ["random", str(small_student)]
    row = table["rows"][str(small_student)]
    assert len(row["mIoU"]) == 2 and set(row["iou_per_class"]) == {"background", "left", "right"}
    over = [a - b for a, b in zip(row["mIoU"], table["rows"]["random"]["mIoU"], strict=True)]
    assert row["over_first"] == pytest.approx(over)
    first = [load_file(out / name / "initial" / "model.safetensors")["conv1.weight"] for name in row["runs"]]
    assert torch.equal(*first), "the student's weights, whatever the seed"
    drawn = [
        load_file(out / name / "initial" / "model.safetensors")["conv1.weight"]
        for name in table["rows"]["random"]["runs"]
    ]
    assert not torch.equal(*drawn)
    monkeypatch.setattr("stillroom.finetune.lifecycle.start", lambda *arguments, **_: pytest.fail("done twice"))
    finetune(config)
    with pytest.raises(ValueError, match="is a sweep: repeat its command, which resumes it"):
        resume(out)
    with pytest.raises(ValueError, match=r"is a run with other settings \(lr\): choose another --out"):
        finetune(replace(config, lr=0.5))
    torch.manual_seed(4)
    other = build_backbone("cifar/resnet20", feature="before")
    save_checkpoint(small_student, other, method="kdep", package="stillroom-distill")
    with pytest.raises(ValueError, match=r"the weights of .* have changed since .* began: choose another --out"):
        finetune(config)
    (out / row["runs"][0] / "results.json").unlink()
    next((config.data / "labels" / "train").iterdir()).write_bytes(
        (config.data / "labels" / "val" / "00.png").read_bytes() + b" "
    )
    with pytest.raises(ValueError, match=r"the data in .* have changed since .* began: choose another --out"):
        finetune(config)


@pytest.mark.slow
def test_a_config_of_mmsegmentation_keeps_all_but_the_initial_weights(make_config: Make, student: Path) -> None:
    plain = finetune(make_config(checkpoint=RESNET, steps=2))
    theirs = Config.fromfile(str(plain / "config.py"), format_python_code=False)
    theirs.model.backbone = {"type": "ResNet", "depth": 18, "strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)}
    theirs.custom_hooks = []
    theirs.optim_wrapper.optimizer.lr = 0.123
    theirs.test_evaluator.type = "IoUMetric"
    file = plain.parent / "theirs.py"
    theirs.dump(str(file))
    config = SegmentConfig(
        checkpoint=(str(student),), framework_config=file, out=plain.parent / "adopted", device="cpu"
    )
    for change in ({"data": plain}, {"steps": 7}):
        with pytest.raises(ValueError, match=r"--(data|steps) is .*, and has no effect beside --framework-config"):
            finetune(replace(config, **change))
    out = finetune(config)
    resolved = Config.fromfile(str(out / "config.py"))
    assert resolved.optim_wrapper.optimizer.lr == 0.123 and resolved.train_cfg.max_iters == 2
    assert resolved.model.backbone.type == "ResNet"
    results = read_results(out)
    assert results.protocol.startswith("segmentation/v1 framework-config=theirs.py sha256=")
    assert results.extra["images"] == {"decoder": "that of theirs.py"}
    assert results.datasets["train"].count == 9 and set(results.extra["iou_per_class"]) == {
        "background",
        "left",
        "right",
    }
    assert not torch.equal(
        load_file(out / "checkpoint" / "model.safetensors")["conv1.weight"],
        load_file(student / "model.safetensors")["conv1.weight"],
    )
    (out / "results.json").unlink()
    with pytest.raises(ValueError, match=r"^--log-every is 7, .* has no effect beside --framework-config: leave"):
        resume(out, log_every=7, trust_run=True)
    for run_it in (
        resume,
        partial(predict, images=plain.parent / "masked" / "images" / "val", out=out.parent / "masks"),
    ):
        with pytest.raises(
            ValueError, match=r"was trained by the config .*theirs.py, which is a program: pass --trust-r"
        ):
            run_it(out)
        (out / "results.json").write_bytes((plain / "results.json").read_bytes())
    (out / "results.json").unlink()
    resume(out, trust_run=True)
    assert read_results(out).metrics == results.metrics
    images = plain.parent / "masked" / "images" / "val"
    assert len(list((predict(out, images, out.parent / "masks", trust_run=True) / "masks").iterdir())) == 3
    (out / "results.json").unlink()
    file.write_text(file.read_text().replace("lr=0.123", "lr=0.2"))
    with pytest.raises(ValueError, match=r"the data in .*theirs.py have changed since .*adopted began"):
        resume(out, trust_run=True)
    with pytest.raises(ValueError, match=r"there is no .*none.py"):
        finetune(replace(config, framework_config=plain / "none.py", out=plain.parent / "other"))
    whole = file.read_text()
    for more, words in (
        ("x = = 1", r"theirs.py cannot be read as a config of MMEngine: "),
        ("x = absent", r"theirs.py cannot be read as a config of MMEngine: name 'absent' is not defined"),
        ("model = 'x'", r"theirs.py has no model.backbone with a type"),
        ("model['backbone'].pop('type')", r"theirs.py has no model.backbone with a type"),
        (
            "model['decode_head']['type'] = 'Absent'",
            r"the model of .*theirs.py cannot be built: .*Absent",
        ),
        ("model['decode_head']['num_classes'] = 2", r"the model of .*theirs.py predicts 2 classes, the data has 3"),
        ("model['backbone']['depth'] = 50", r"tensors of the model's backbone do not fit the checkpoint's"),
        ("optim_wrapper['optimizer']['type'] = 'Absent'", r"the optim_wrapper of .*theirs.py cannot be built: "),
        ("test_evaluator['type'] = 'Absent'", r"the test_evaluator of .*theirs.py cannot be built: "),
        (
            "test_dataloader['dataset']['part'] = 'gone'",
            r"the test images of .*theirs.py cannot be read: .*images/gone",
        ),
        ("train_dataloader['dataset']['type'] = 'Absent'", r"the train images of .*theirs.py cannot be read: .*Absent"),
    ):
        file.write_text(f"{whole}\n{more}\n")
        with pytest.raises(ValueError, match=words):
            finetune(replace(config, out=plain.parent / "early"))
        assert not (plain.parent / "early").exists(), "nothing is written"
    (plain.parent / "bytes.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bytes.py cannot be read as a config of MMEngine: "):
        finetune(replace(config, framework_config=plain.parent / "bytes.py", out=plain.parent / "early"))


def test_weights_that_did_not_arrive_stop_the_run(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmengine.model.weight_init.PretrainedInit.__call__", lambda self, module: None)
    with pytest.raises(CheckpointError, match="of 120 tensors of the model's backbone are not the"):
        finetune(make_config(checkpoint=RESNET))


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_is_cut_short_is_named(make_config: Make, masked: Path, part: str, workers: int) -> None:
    """Its header can be read, so nobody sees it before; MMCV would give what there is, grey from there on."""
    for file in (masked / "images" / part).iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BrokenImageError, match=rf"^/[^\n]*/{part}/\d\d\.jpg cannot be read as an image: [^\n]*$"):
        finetune(config := make_config(workers=workers, steps=1))
    assert config.out.exists() == (part == "val"), "refused in its first step, it leaves nothing"


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(make_config: Make) -> None:
    config = make_config(lr=1e18, steps=8)
    with pytest.raises(
        DivergedError, match=r"(loss is nan|not finite) at step \d: lower --lr; (the last good|no state)"
    ):
        finetune(config)
    for file in config.out.glob("iter_*.pth"):
        state = trained_model(config.out, int(file.stem.removeprefix("iter_")))
        assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_weights_that_are_not_finite_are_not_kept(make_config: Make) -> None:
    """Though the only loss was."""
    config = make_config(steps=1, lr=100.0, weight_decay=1e38)
    with pytest.raises(DivergedError, match="weights are not finite at step 1: lower --lr; no state had been saved"):
        finetune(config)
    assert not list(config.out.glob("iter_*.pth")) and not (config.out / "results.json").exists()


def test_a_run_is_resumed_from_its_last_complete_state(make_config: Make) -> None:
    """MMEngine's pointer to it may be lost, and a state may be truncated."""
    out = finetune(make_config(steps=4))
    whole = trained_model(out, 4)
    for note in ("", str(out / "iter_9.pth")):
        (out / "results.json").unlink()
        (out / "last_checkpoint").write_text(note)
        (out / "iter_4.pth").write_bytes((out / "iter_4.pth").read_bytes()[:-1000])
        resume(out)
        assert_bit_equal(trained_model(out, 4), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps is 0: it must be at least 1"),
        ({"aux_weight": -1.0}, "--aux-weight is -1.0: it must be at least 0"),
        ({"momentum": 1.5}, r"--momentum is 1.5: it must lie in \[0, 1\)"),
        ({"lr": float("inf")}, "--lr is inf: it must be at least 0, and finite"),
        ({"scale": (2.0, 0.5)}, "--scale is 2.0 0.5: the smallest factor, then the largest, from 0.1 to 10"),
        ({"scale": (0.5, float("inf"))}, "--scale is 0.5 inf: the smallest factor, then the largest"),
        ({"scales": (0.0,)}, r"--scales holds \[0.0\]: factors from 0.1 to 10"),
        ({"batch_size": 1}, "--batch-size leaves one image to a process"),
        ({"amp": "bf16"}, "--amp bf16 needs a GPU: MMEngine's mixed precision refuses the CPU"),
        ({"frozen": True}, "--frozen features take one decoder: pass --aux-weight 0"),
        ({"checkpoint": ()}, "--checkpoint is empty"),
        ({"seeds": (1, 1)}, "--seeds lists 1 twice: pass it once"),
        ({"checkpoint": ("random",)}, "--checkpoint random names no net"),
        (
            {"checkpoint": ("random:cifar/resnet20",), "head": "upernet", "output_stride": 32},
            "upernet needs four levels",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_there_is_a_run(
    make_config: Make, changes: dict, message: str
) -> None:
    config = make_config(**changes)
    with pytest.raises(ValueError, match=message):
        finetune(config)
    assert not config.out.exists()


def test_a_segmentation_backbone_can_be_a_teacher(make_config: Make) -> None:
    config = make_config(checkpoint=("random:torchvision/mobilenet_v2",), head="fcn", steps=2, crop=64)
    out = finetune(config)
    first, last = (load_checkpoint(out / name)[0] for name in ("initial", "checkpoint"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before, after = first.eval()(images), last.eval()(images)
    assert after.pooled.shape == (1, 1280) and not torch.equal(before.pooled, after.pooled)
    assert torch.equal(first.net.features[18][0].weight, last.net.features[18][0].weight), "as it came"
