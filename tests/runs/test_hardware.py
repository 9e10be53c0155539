"""What `auto` makes of a machine, and nets held in a number format."""

import pytest
import torch

from stillroom.backbone import build_backbone
from stillroom.runs import Run, hardware
from stillroom.runs.hardware import (
    autocast,
    batch_warnings,
    choose_amp,
    choose_workers,
    cores_per_process,
    exact_float32,
    fast_float32,
    float64_device,
    hold_weights,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({}, 96),
        ({"LOCAL_WORLD_SIZE": "8"}, 12),
        ({"SLURM_CPUS_PER_TASK": "24"}, 24),
        ({"LOCAL_WORLD_SIZE": "200"}, 1),
        ({"SLURM_CPUS_PER_TASK": "12", "LOCAL_WORLD_SIZE": "8"}, 12),  # SLURM alone: a task is a process
        ({"SLURM_CPUS_PER_TASK": "48", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "1"}, 6),
    ],
)
def test_the_cores_are_shared_by_the_processes_of_a_machine(
    environment: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hardware, "usable_cores", lambda: 96)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cores_per_process() == cores


@pytest.mark.parametrize(
    ("cores", "has_gpu", "workers"), [(1, False, 1), (8, False, 7), (96, False, 16), (8, True, 8), (96, True, 64)]
)
def test_auto_starts_a_worker_for_each_core_and_leaves_one_where_the_cores_compute(
    cores: int, has_gpu: bool, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cores_per_process", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_workers("auto") == workers
    assert choose_workers(0) == 0


def test_auto_is_bf16_where_a_gpu_has_it_fp16_on_an_older_one_and_float32_on_every_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_amp("auto", CUDA) == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert choose_amp("auto", CUDA) == "fp16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_amp("auto", CPU) == choose_amp("auto", torch.device("mps")) == "none"
    assert choose_amp("bf16", CPU) == "bf16"


@pytest.mark.parametrize("name", ["cifar/resnet20", "torchvision/mobilenet_v2", "timm/vit_tiny_patch16_224"])
def test_a_held_net_gives_the_bits_of_autocast_without_its_casts(name: str) -> None:
    net = build_backbone(name).eval().requires_grad_(False)
    held = hold_weights(net, "bf16", CPU)
    side = 224 if "vit" in name else 32
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))

    def casts(module: torch.nn.Module) -> tuple[torch.Tensor, int]:
        with torch.profiler.profile() as profile, torch.no_grad(), autocast("bf16", CPU):
            pooled = module(images).pooled
        return pooled, sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy")

    (expected, many), (found, few) = casts(net), casts(held)
    assert torch.equal(found, expected)
    assert few < many / 2
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    assert hold_weights(net, "none", CPU) is net


def test_tf32_is_for_the_steps_on_a_gpu_and_never_for_what_is_measured() -> None:
    before = torch.get_float32_matmul_precision()
    with fast_float32(CPU):
        assert torch.get_float32_matmul_precision() == before
    with fast_float32(CUDA):
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.benchmark
        with exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before and not torch.backends.cudnn.benchmark


def test_a_small_share_of_a_global_batch_is_warned_of() -> None:
    assert batch_warnings(16, Run(device=CPU)) == []
    assert batch_warnings(256, Run(device=CUDA, world_size=8)) == []
    [text] = batch_warnings(64, Run(device=CUDA, world_size=8))
    assert text.startswith("--batch-size 64 counts the images of all 8 processes and leaves 8 to each device")
    assert "pass at least 256" in text
    assert batch_warnings(16, Run(device=CUDA))


def test_float64_is_computed_where_it_exists() -> None:
    assert [float64_device(torch.device(kind)).type for kind in ("cpu", "cuda", "mps")] == ["cpu", "cuda", "cpu"]
