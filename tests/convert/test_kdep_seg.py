"""KDEP's `.seg` files: its students as its transform_ckpt_custom2seg.py writes them for its segmentation code."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torchvision
from tests.convert.conftest import trained, write_pth
from tests.convert.test_importing import KdepMobileNetV2, robustness
from torch import Tensor, nn

from stillroom.backbone import CheckpointError, load_checkpoint
from stillroom.convert.importing import import_file


def as_seg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both copies of the net become one under bare names; every other tensor keeps its name."""
    written = {}
    for key, tensor in state.items():
        for prefix in ("module.attacker.model.model.", "module.model.model."):
            key = key.replace(prefix, "")
        written[key] = tensor
    return written


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_seg_file_is_the_checkpoint_that_it_was_made_of(tmp_path: Path, name: str) -> None:
    net: nn.Module = torchvision.models.resnet18(num_classes=5) if name == "resnet18" else KdepMobileNetV2(5)
    whole = robustness(trained(net).state_dict(), "module.model.model.")
    seg = as_seg(whole)
    assert "module.normalizer.new_mean" in seg and len(seg) == len(net.state_dict()) + 4
    first, second = (
        import_file(write_pth(tmp_path / file, content), tmp_path / out, source="kdep", backbone=f"torchvision/{name}")
        for file, content, out in (("checkpoint.pt.latest", {"model": whole}, "a"), ("student.pt.seg", seg, "b"))
    )
    assert (second.weights, second.heads, second.backbone) == (first.weights, first.heads, first.backbone)
    assert second.backbone.input.mean == (0.5, 0.25, 0.125)
    assert load_checkpoint(tmp_path / "b")[0].spec.dim == (512 if name == "resnet18" else 1280)


def test_a_tensor_of_a_seg_file_that_the_net_does_not_have_is_named(tmp_path: Path) -> None:
    state = {**torchvision.models.resnet18().state_dict(), "extra.0.weight": torch.ones(2)}
    file = write_pth(tmp_path / "student.pt.seg", state)
    with pytest.raises(CheckpointError, match=r"extra\.0\.weight"):
        import_file(file, tmp_path / "a", source="kdep", backbone="torchvision/resnet18")
    assert not (tmp_path / "a").exists()
