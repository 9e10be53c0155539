"""The config that MMEngine gets: what reaches the net, which parameters learn at which rate, how it is evaluated."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import mmseg
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from PIL import Image

from stillroom.backbone import InputSpec, Normalize, build_backbone, load_checkpoint
from stillroom.runs import Run, read_results
from stillroom.seg_transfer import SegmentConfig, finetune
from stillroom.seg_transfer.config import SegmentConfig as Config
from stillroom.seg_transfer.metrics import from_areas
from stillroom.seg_transfer.presets import PRESETS
from stillroom.seg_transfer.recipe import PLUGIN, build_preprocessor, build_test
from stillroom.seg_transfer.record import RESOLVED, protocol
from stillroom.seg_transfer.train import build_plan
from stillroom.seg_transfer.transforms import LoadPicture

Make = Callable[..., SegmentConfig]


@pytest.fixture(autouse=True)
def scope() -> None:
    """Where MMEngine looks for names."""
    init_default_scope("mmseg")


def sample(mask: np.ndarray) -> SegDataSample:
    """What MMSegmentation knows of an image with this mask."""
    made = SegDataSample(metainfo={"img_shape": mask.shape, "ori_shape": mask.shape})
    made.gt_sem_seg = PixelData(data=torch.from_numpy(mask[None]).long())
    return made


ODD = InputSpec(mean=(10.0, 20.0, 30.0), std=(2.0, 3.0, 4.0), value_range=(-5.0, 250.0))


@pytest.mark.parametrize("spec", [InputSpec(), ODD, replace(ODD, channel_order="bgr")], ids=["usual", "odd", "bgr"])
def test_the_net_sees_what_the_checkpoint_says(spec: InputSpec) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    bgr = torch.from_numpy(np.ascontiguousarray(rgb[:, :, ::-1])).permute(2, 0, 1)  # as MMCV reads it
    preprocess = MODELS.build(build_preprocessor(spec, 32, 1))
    given = preprocess({"inputs": [bgr], "data_samples": [sample(np.zeros((32, 32), np.uint8))]}, training=True)
    expected = Normalize(spec)(torch.from_numpy(rgb).permute(2, 0, 1)[None])
    assert torch.allclose(given["inputs"], expected, rtol=1e-5, atol=1e-4)


def test_padding_of_a_small_image_is_ignored() -> None:
    preprocess = MODELS.build(build_preprocessor(InputSpec(), 32, 1))
    small = {"inputs": [torch.zeros(3, 20, 24)], "data_samples": [sample(np.ones((20, 24), np.uint8))]}
    given = preprocess(small, training=True)
    mask = given["data_samples"][0].gt_sem_seg.data[0]
    assert mask.shape == (32, 32) and (mask[:20, :24] == 1).all()
    assert (mask[20:] == 255).all() and (mask[:, 24:] == 255).all()


def plan_of(config: SegmentConfig, run: Run, name: str = "torchvision/resnet18") -> Any:
    return build_plan(config, run, build_backbone(name))


def test_decoders_learn_at_ten_times_the_rate(make_config: Make, run: Run) -> None:
    resolved = plan_of(make_config(lr=0.02, head_lr=10.0), run).resolved
    model = MODELS.build(resolved.model)
    groups = build_optim_wrapper(model, resolved.optim_wrapper).optimizer.param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.02 if name.startswith("backbone.") else 0.2), name
    assert all(group["weight_decay"] == 1e-4 and group["momentum"] == 0.9 for group in groups)


def test_losses_are_weighed(make_config: Make, run: Run) -> None:
    resolved = plan_of(make_config(main_weight=1.5, aux_weight=0.25), run).resolved
    torch.manual_seed(0)
    heads = MODELS.build(resolved.model)
    plain = plan_of(make_config(main_weight=1.0, aux_weight=1.0), run).resolved
    torch.manual_seed(0)
    twins = MODELS.build(plain.model)
    images, samples = torch.randn(2, 3, 32, 32), [sample(np.ones((32, 32), np.uint8)) for _ in range(2)]
    losses = []
    for model in (heads, twins):
        torch.manual_seed(1)  # of dropout
        losses.append(model.train().loss(images, samples))
    assert float(losses[0]["decode.loss_ce"]) == pytest.approx(1.5 * float(losses[1]["decode.loss_ce"]), rel=1e-5)
    assert float(losses[0]["aux.loss_ce"]) == pytest.approx(0.25 * float(losses[1]["aux.loss_ce"]), rel=1e-5)


def test_the_rate_falls_to_zero_behind_the_last_step(make_config: Make) -> None:
    out = finetune(make_config(steps=5, lr=0.02))
    lines = next(out.rglob("scalars.json")).read_text().splitlines()
    rates = [row["base_lr"] for row in map(json.loads, lines) if "base_lr" in row]
    assert rates == pytest.approx([0.02 * (1 - step / 5) ** 0.9 for step in range(5)])
    assert read_results(out).seconds > 0


def test_windows_overlap_by_a_third() -> None:
    config = Config(checkpoint=("x",), out=Path("x"), evaluation="slide", crop=96)
    assert build_test(config) == {"mode": "slide", "crop_size": (96, 96), "stride": (64, 64)}
    assert build_test(replace(config, evaluation="whole")) == {"mode": "whole"}


def test_mirrored_images_are_averaged_with_the_others(make_config: Make, run: Run) -> None:
    """By hand: the mean of both answers' probabilities, one of them mirrored back."""
    config = make_config(steps=1, flip=True, lr=0.0)  # random weights: the two views disagree
    out = finetune(config)
    resolved = plan_of(config, run, "cifar/resnet20").resolved
    model = MODELS.build(resolved.model).eval()
    # MMEngine pickles its log buffers beside the weights; the file is this test's own
    weights = torch.load(out / "iter_1.pth", map_location="cpu", weights_only=False)["state_dict"]
    model.load_state_dict(weights)
    normalize = Normalize(load_checkpoint(out / "checkpoint")[0].spec.input)
    areas = {name: torch.zeros(2, 3, 3).double() for name in ("both", "one")}
    with torch.no_grad():
        for image in sorted((config.data / "images" / "val").iterdir()):
            pixels = torch.from_numpy(cv2.imread(str(image))[:, :, ::-1].copy()).permute(2, 0, 1)[None]
            truth = torch.from_numpy(np.array(Image.open(config.data / "labels" / "val" / f"{image.stem}.png"))).long()
            views = normalize(pixels), normalize(pixels).flip(3)
            straight, turned = (answer(model, view, truth.shape) for view in views)
            for row, name in enumerate(("both", "one")):
                scores = straight + turned.flip(3) if name == "both" else straight
                found = scores.argmax(dim=1)[0]
                for label in range(3):
                    here, there = found == label, truth == label
                    counted = ((here & there).sum(), (here | there).sum(), there.sum())
                    areas[name][row, label] += torch.stack(counted).double()
    both, one = (from_areas(*areas[name][row].T, ["background", "left", "right"]) for row, name in enumerate(areas))
    measured = read_results(out).metrics["aAcc"]
    assert measured == pytest.approx(both["aAcc"], abs=1e-9)
    assert one["aAcc"] != pytest.approx(both["aAcc"], abs=1e-9), "it makes a difference here"


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "imported"), [((), PLUGIN), (("--tta",), "stillroom.seg_transfer")])
def test_mmsegmentations_own_test_measures_the_same(
    make_config: Make, tmp_path: Path, flags: tuple[str, ...], imported: str
) -> None:
    """Its script, in a process of its own, on the config and the weights that a run leaves, or left before 0.2.0."""
    out = finetune(make_config(checkpoint=("random:torchvision/resnet18",), steps=1, flip=bool(flags)))
    written = (out / RESOLVED).read_text()
    assert PLUGIN in written
    (out / RESOLVED).write_text(written.replace(PLUGIN, imported))
    tool = Path(mmseg.__file__).parent / ".mim" / "tools" / "test.py"
    theirs = [sys.executable, tool, out / RESOLVED, out / "iter_1.pth", "--work-dir", tmp_path / "theirs", *flags]
    done = subprocess.run(theirs, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (found,) = (
        json.loads(file.read_text()) for file in (tmp_path / "theirs").rglob("*.json") if file.stem == file.parent.name
    )
    assert {name: found[name] for name in ("mIoU", "mAcc", "aAcc")} == pytest.approx(
        {name: read_results(out).metrics[name] for name in ("mIoU", "mAcc", "aAcc")}
    )


def answer(model: Any, images: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Probabilities (1, k, h, w) of a whole image."""
    meta = [{"img_shape": tuple(size), "ori_shape": tuple(size)}]
    return model.encode_decode(images, meta).softmax(dim=1)


def test_images_are_read_as_mmcv_reads_them(masked: Path) -> None:
    for file in (masked / "images" / "val").iterdir():
        with Image.open(file) as image:
            image.save(lossless := file.with_suffix(".png"))
        results = {"img_path": str(lossless)}
        ours, theirs = LoadPicture()(dict(results)), LoadImageFromFile()(dict(results))
        assert ours.keys() == theirs.keys() and ours["img"].flags["C_CONTIGUOUS"]
        assert (ours.pop("img") == theirs.pop("img")).all() and ours == theirs


def test_scaling_and_blur_change_pixels_and_keep_masks() -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), rng.integers(0, 3, (40, 60), dtype=np.uint8)
    np.random.seed(0)
    scaled = TRANSFORMS.build({"type": "ScaleBy", "factors": (0.5, 0.5)})(
        {"img": image.copy(), "gt_seg_map": mask.copy(), "seg_fields": ["gt_seg_map"], "img_shape": (40, 60)}
    )
    assert scaled["img"].shape == (20, 30, 3) and scaled["gt_seg_map"].shape == (20, 30)
    assert set(np.unique(scaled["gt_seg_map"])) <= {0, 1, 2}
    blurs = [TRANSFORMS.build({"type": "Blur", "share": share}) for share in (0.0, 1.0)]
    blurred = [blur({"img": image.copy(), "gt_seg_map": mask}) for blur in blurs]
    assert (blurred[0]["img"] == image).all()
    assert (blurred[1]["img"] == cv2.GaussianBlur(image, (5, 5), 0)).all() and (blurred[1]["gt_seg_map"] == mask).all()


def test_the_protocol_says_what_was_run(make_config: Make, run: Run) -> None:
    config = make_config(checkpoint=("random:cifar/resnet20",))
    plan = plan_of(config, run, "cifar/resnet20")
    assert "psp stride=4 " in protocol(config, plan.data, plan.bridge.strides[-1]), "of the net, not of the flag"
    legacy = PRESETS["legacy-kdep-mnv2"](checkpoint=("x",), out=Path("x"))
    said = protocol(legacy, plan.data, 32)
    assert "main-weight=1.4 align-corners" in said and "channels" not in said
    assert "channels=8" in protocol(config, plan.data, 32), "what is not the recipe's"


def test_legacy_presets_count_the_images_that_kdep_saw() -> None:
    """Epochs of 10,582, 2,975 and 20,210 images in batches of 16."""
    for net in ("r18", "mnv2"):
        for data, images, epochs in (("", 10_582, 50), ("-cityscapes", 2975, 200), ("-ade20k", 20_210, 100)):
            config = PRESETS[f"legacy-kdep-{net}{data}"](checkpoint=("x",), out=Path("x"))
            assert config.steps == images * epochs // 16
            assert config.layout == (data.strip("-") or "voc2012aug") and config.align_corners and config.flip
            assert config.scale == ((0.5, 2.0) if data else (0.5, 1.5))
            plain = PRESETS[f"pspnet{data or '-voc'}"](checkpoint=("x",), out=Path("x"))
            assert (plain.steps, plain.layout, plain.scale) == (config.steps, config.layout, config.scale)
            assert (plain.atrous, plain.output_stride, plain.aux_weight) == ("exact", 8, 0.4), "without the quirks"
            assert plain.evaluation == "slide" and plain.flip and not plain.align_corners and plain.lr == 0.01


def test_a_vit_is_measured_on_images_of_any_size(make_config: Make) -> None:
    name = "random:timm/vit_tiny_patch16_224"
    out = finetune(make_config(checkpoint=(name,), head="upernet", output_stride=32, steps=1, crop=32))
    assert 0 <= read_results(out).metrics["mIoU"] <= 1  # images are 40 x 32 px
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 takes no images of 40 x 40 px"):
        finetune(make_config(checkpoint=(name,), head="upernet", output_stride=32, crop=40, out=out.parent / "b"))
    with pytest.raises(ValueError, match=r"takes no images of 32 x 32 px .*: try --crop 224 --evaluation slide"):
        finetune(
            make_config(
                checkpoint=("random:timm/swin_tiny_patch4_window7_224",),
                head="upernet",
                output_stride=32,
                out=out.parent / "c",
            )
        )


def test_a_run_that_was_moved_uses_its_own_weights(make_config: Make) -> None:
    from stillroom.seg_transfer.states import latest_weights

    config = make_config(steps=2)
    out = finetune(config)
    moved = out.rename(out.parent / "moved")
    assert latest_weights(moved) == moved / "iter_2.pth" and latest_weights(moved).exists()
