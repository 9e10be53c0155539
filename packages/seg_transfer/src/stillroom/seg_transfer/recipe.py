"""Write a run as a config of MMEngine, which MMSegmentation's own tools accept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from stillroom.backbone import InputSpec
from stillroom.convert.framework_nets import pixel_statistics
from stillroom.runs.hardware import choose_workers
from stillroom.seg_transfer.bridge import SegBridge
from stillroom.seg_transfer.config import SegmentConfig
from stillroom.seg_transfer.data import SegmentationData
from stillroom.seg_transfer.masks import IGNORED

PLUGIN = "stillroom.seg_transfer.plugin"  # importing it registers the names of our configs
POWER = 0.9  # of the polynomial learning-rate decay
INFERENCE = ({"type": "LoadPicture"}, {"type": "PackSegInputs"})
"""The pipeline of images without masks."""
AUX_CHANNELS = 256
"""Width of the auxiliary decoder."""


def build_config(
    config: SegmentConfig, bridge: SegBridge, data: SegmentationData, initial: Path, norm: str, world_size: int
) -> Config:
    """Build the whole config of a run.

    Args:
        config: of a single run.
        bridge: of its backbone.
        data: its images.
        initial: file of the initial weights under MMSegmentation's names.
        norm: `BN`, or `SyncBN` over several GPUs.
        world_size: processes that share a batch.
    """
    settings = {
        "default_scope": "mmseg",
        "custom_imports": {"imports": [PLUGIN], "allow_failed_imports": False},
        "model": build_model(config, bridge, len(data.classes), initial, norm),
        **build_loaders(config, data, config.batch_size // world_size),
        **(build_average(config) if needs_average(config) else {}),
        **build_schedule(config, initial),
        "work_dir": str(config.out),
        "launcher": "pytorch" if world_size > 1 else "none",
        "find_unused_parameters": bridge.config["type"] == "StillroomBackbone",
        "randomness": {"seed": config.seed},
        "log_level": "INFO",
        "load_from": None,
        "resume": False,
    }
    return Config(settings, format_python_code=False)  # yapf takes 2 s each time, seven times a run


def adopt_config(config: SegmentConfig, resolved: Config, initial: Path, world_size: int) -> Config:
    """Put our initial weights, seed and run directory into a user's config; its metric gets the IoU of each class.

    Args:
        config: of a single run.
        resolved: the user's, changed in place.
        initial: file of the initial weights under MMSegmentation's names.
        world_size: processes.
    """
    resolved.merge_from_dict(
        {
            "work_dir": str(config.out),
            "launcher": "pytorch" if world_size > 1 else "none",
            "randomness": {"seed": config.seed},
            "load_from": None,
        }
    )
    resolved.model.pop("pretrained", None)
    resolved.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(initial)}
    hooks = [*resolved.get("custom_hooks", []), {"type": "AssertLoaded", "file": str(initial)}]
    hooks.append({"type": "SaveByClock", "minutes": config.save_minutes})
    resolved.custom_hooks = hooks
    imports = resolved.get("custom_imports", {}).get("imports", [])
    resolved.custom_imports = {"imports": [*imports, PLUGIN], "allow_failed_imports": False}
    if resolved.test_evaluator.type == "IoUMetric":
        resolved.test_evaluator.type = "ClassIoU"
    return resolved


def build_model(config: SegmentConfig, bridge: SegBridge, num_classes: int, initial: Path, norm: str) -> dict[str, Any]:
    """Build EncoderDecoder's config: our backbone, a decoder and, if requested, an auxiliary one on the third level.

    Raises:
        ValueError: a decoder that does not fit the backbone's levels.
    """
    channels, last = bridge.channels, len(bridge.channels) - 1
    common = {
        "num_classes": num_classes,
        "norm_cfg": {"type": norm, "requires_grad": True},
        "align_corners": config.align_corners,
    }
    single = {"in_channels": channels[last], "in_index": last, "channels": config.channels, "dropout_ratio": 0.1}
    loss = {"type": "CrossEntropyLoss", "avg_non_ignore": True, "loss_weight": config.main_weight}
    neck: dict[str, Any] | None = None
    match config.head:
        case "psp":
            head: dict[str, Any] = {"type": "PSPHead", **single, "pool_scales": (1, 2, 3, 6)}
        case "fcn":
            head = {"type": "FCNHead", **single, "num_convs": 2, "concat_input": True}
        case "deeplabv3plus":
            head = {
                "type": "DepthwiseSeparableASPPHead",
                **single,
                "dilations": (1, 12, 24, 36),
                "c1_in_channels": channels[0],
                "c1_channels": 48,
            }
        case "upernet":
            if len(channels) < 4:
                raise ValueError(f"upernet needs four levels, {bridge.spec.name} has {len(channels)}")
            if len(set(bridge.strides)) == 1:  # ViT
                neck = {"type": "Feature2Pyramid", "embed_dim": channels[0], "rescales": [4, 2, 1, 0.5]}
            head = {
                "type": "UPerHead",
                **single,
                "in_channels": list(channels[-4:]),
                "pool_scales": (1, 2, 3, 6),
                "in_index": list(range(len(channels)))[-4:],
            }
        case "linear":
            head = {
                "type": "LinearHead",
                "in_channels": channels[last],
                "in_index": last,
                "channels": channels[last],
                "dropout_ratio": 0.0,
            }
    model: dict[str, Any] = {
        "type": "EncoderDecoder",
        "data_preprocessor": build_preprocessor(bridge.spec.input, config.crop, bridge.divisor),
        "backbone": {**bridge.config, "init_cfg": {"type": "Pretrained", "checkpoint": str(initial)}},
        "decode_head": {**head, **common, "loss_decode": loss},
        "train_cfg": {},
        "test_cfg": build_test(config),
    }
    if neck is not None:
        model["neck"] = {**neck, "norm_cfg": common["norm_cfg"]}
    if config.aux_weight:
        if last < 1:
            raise ValueError(f"{bridge.spec.name} has one level: pass --aux-weight 0")
        model["auxiliary_head"] = {
            "type": "FCNHead",
            "in_channels": channels[last - 1],
            "in_index": last - 1,
            "channels": min(AUX_CHANNELS, config.channels),
            "num_convs": 1,
            "concat_input": False,
            "dropout_ratio": 0.1,
            **common,
            "loss_decode": {**loss, "loss_weight": config.aux_weight},
        }
    return model


def build_test(config: SegmentConfig) -> dict[str, Any]:
    """Build the test mode: whole images, or windows that overlap by a third."""
    if config.evaluation == "whole":
        return {"mode": "whole"}
    step = max(1, round(config.crop * 2 / 3))
    return {"mode": "slide", "crop_size": (config.crop, config.crop), "stride": (step, step)}


def build_preprocessor(spec: InputSpec, crop: int, divisor: int) -> dict[str, Any]:
    """Build the preprocessor: the checkpoint's mean and std on 0 to 255, its channel order (MMCV reads BGR), sizes."""
    mean, std = pixel_statistics(spec)
    return {
        "type": "SegDataPreProcessor",
        "mean": mean,
        "std": std,
        "bgr_to_rgb": spec.channel_order == "rgb",
        "pad_val": 0,
        "seg_pad_val": IGNORED,
        "size": (crop, crop),
        "test_cfg": {"size_divisor": divisor},
    }


def build_loaders(config: SegmentConfig, data: SegmentationData, share: int) -> dict[str, Any]:
    """Build the data loaders and metrics; each process reads `share` training images per step."""
    rotation = {"prob": 0.5, "degree": config.rotate, "seg_pad_val": IGNORED}
    train: list[dict[str, Any]] = [
        {"type": "LoadPicture"},
        {"type": "LoadMask"},
        {"type": "ScaleBy", "factors": config.scale},
        *([{"type": "RandomRotate", **rotation}] if config.rotate else []),
        *([{"type": "Blur", "share": config.blur}] if config.blur else []),
        {"type": "RandomCrop", "crop_size": (config.crop, config.crop), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    test = [{"type": "LoadPicture"}, {"type": "LoadMask"}, {"type": "PackSegInputs"}]
    dataset = with_pipeline(data.train.config, train)
    num_workers = choose_workers(config.workers)
    workers = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    evaluate: dict[str, Any] = {
        "batch_size": 1,
        **workers,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {**data.val.config, "pipeline": test, "test_mode": True},
    }
    return {
        "train_dataloader": {
            "batch_size": share,
            **workers,
            "sampler": {"type": "SeededSampler"},
            "drop_last": True,
            "dataset": {"type": "SeededDataset", "dataset": dataset, "seed": config.seed},
        },
        "val_dataloader": evaluate if config.val_every else None,
        "test_dataloader": evaluate,
        "test_pipeline": [dict(step) for step in INFERENCE],  # the name that MMSegmentation's inference looks up
        "val_evaluator": {"type": "ClassIoU"} if config.val_every else None,
        "test_evaluator": {"type": "ClassIoU"},
    }


def build_average(config: SegmentConfig) -> dict[str, Any]:
    """Build the evaluation of several views of each image, which MMSegmentation's own test uses with `--tta`."""
    flips = [False, True] if config.flip else [False]
    views = {
        "type": "TestTimeAug",
        "transforms": [
            [{"type": "ScaleBy", "factors": (factor, factor)} for factor in config.scales],
            [{"type": "RandomFlip", "prob": float(flip), "direction": "horizontal"} for flip in flips],
            [{"type": "LoadMask"}],
            [{"type": "PackSegInputs"}],
        ],
    }
    return {"tta_model": {"type": "SegTTAModel"}, "tta_pipeline": [{"type": "LoadPicture"}, views]}


def with_pipeline(dataset: Mapping[str, Any], pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    """Set the pipeline of a data set's config, in each of its parts."""
    if dataset["type"] == "ConcatDataset":
        return {**dataset, "datasets": [{**part, "pipeline": pipeline} for part in dataset["datasets"]]}
    return {**dataset, "pipeline": pipeline}


def needs_average(config: SegmentConfig) -> bool:
    """Whether several views of each image are evaluated."""
    return config.flip or config.scales != (1.0,)


def build_schedule(config: SegmentConfig, initial: Path) -> dict[str, Any]:
    """Build SGD, the learning-rate schedule, loops and hooks."""
    sgd = {"type": "SGD", "lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay}
    heads = {name: {"lr_mult": config.head_lr} for name in ("decode_head", "auxiliary_head")}
    wrapper: dict[str, Any] = {"type": "OptimWrapper", "optimizer": sgd, "paramwise_cfg": {"custom_keys": heads}}
    if config.amp == "bf16":
        wrapper |= {"type": "AmpOptimWrapper", "dtype": "bfloat16"}
    interval = config.save_every or -1  # -1: at the last step only
    save = {"type": "CheckpointHook", "by_epoch": False, "interval": interval, "max_keep_ckpts": 2}
    return {
        "optim_wrapper": wrapper,
        "param_scheduler": [
            {"type": "PolyLR", "eta_min": 0.0, "power": POWER, "begin": 0, "end": config.steps + 1, "by_epoch": False}
        ],
        "train_cfg": {
            "type": "IterBasedTrainLoop",
            "max_iters": config.steps,
            "val_interval": config.val_every or config.steps + 1,
        },
        "val_cfg": {"type": "ValLoop"} if config.val_every else None,
        "test_cfg": {"type": "TestLoop"},
        "default_hooks": {
            "logger": {"type": "LoggerHook", "interval": config.log_every, "log_metric_by_epoch": False},
            "checkpoint": save,
        },
        "custom_hooks": [
            {"type": "AssertLoaded", "file": str(initial)},
            {"type": "SeededSteps", "seed": config.seed},
            {"type": "StopDiverged", "every": config.log_every, "save_every": interval},
            {"type": "SaveByClock", "minutes": config.save_minutes},
        ],
        "log_processor": {"by_epoch": False},
        "env_cfg": {"cudnn_benchmark": False, "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
    }
