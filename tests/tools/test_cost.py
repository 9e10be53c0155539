"""Parameters and multiply-adds, counted by hand for small nets; times are only checked to be positive."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import cost
from cost import Settings, check, count_macs, measure


def test_multiply_adds_are_those_of_convolutions_and_matrices() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    assert count_macs(net, torch.rand(1, 3, 4, 4)) == 4 * 4 * 8 * 3 * 9 + 8 * 4 * 4 * 5


def test_resnet20_costs_as_much_as_in_its_paper() -> None:
    """He et al. 2016, section 4.2: 0.27 million parameters, and 41 million multiply-adds by the layers' sizes."""
    (small,), (large,) = (measure(("random:cifar/resnet20",), size, rounds=1) for size in ((), (64,)))
    assert (small.size, large.size) == (32, 64)
    assert small.parameters == large.parameters == 269_072
    assert small.macs == 32**2 * 9 * (3 * 16 + 6 * 16**2) + 16**2 * 9 * (16 * 32 + 5 * 32**2) + 8**2 * 9 * (
        32 * 64 + 5 * 64**2
    )
    assert large.macs == 4 * small.macs
    assert min(small.milliseconds, large.milliseconds) > 0


def test_settings_that_cannot_work_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nets = ("random:cifar/resnet20",)
    with pytest.raises(ValueError, match="--size has 2 values for 1 nets: pass one for each, or none"):
        check(Settings(nets=nets, size=(32, 64)))
    with pytest.raises(ValueError, match=r"--size holds \[-1\]: it must be at least 0"):
        check(Settings(nets=nets, size=(-1,)))
    with pytest.raises(ValueError, match="--rounds is 0: it must be at least 1"):
        check(Settings(nets=nets, rounds=0))
    with pytest.raises(ValueError, match=r"no images of 40 x 40 px .*: pass another --size; the nearest .* 32 and 48"):
        measure(("random:timm/vit_tiny_patch16_224",), (40,), rounds=1)
    with pytest.raises(ValueError, match="there is no backbone named '/nowhere', nor a checkpoint directory"):
        check(Settings(nets=("/nowhere",)))
    monkeypatch.setattr(sys, "argv", ["cost.py", "random:cifar/resnet20", "--threads", "0"])
    with pytest.raises(SystemExit) as left:
        cost.main()
    assert left.value.code == 2 and "--threads is 0: it must be at least 1" in capsys.readouterr().err


def test_the_command_prints_a_table_and_writes_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cost.json"
    monkeypatch.setattr(
        sys, "argv", ["cost.py", "random:cifar/resnet20", "--rounds", "1", "--size", "0", "--out", str(out)]
    )
    cost.main()
    (cost_of_net,) = json.loads(out.read_text(encoding="utf-8"))
    assert cost_of_net["net"] == "random:cifar/resnet20" and cost_of_net["size"] == 32
    row = capsys.readouterr().out.splitlines()[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")][:4] == [cost_of_net["net"], "32", "0.27", "0.041"]
