"""The initial weights of a run."""

from pathlib import Path

import pytest
import torch

from stillroom.backbone import build_backbone, replace_input, save_checkpoint
from stillroom.backbone.initial import initial_backbone, refuse_size
from stillroom.backbone.names import trained_method


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A checkpoint with images of 24 px."""
    backbone = replace_input(build_backbone("cifar/resnet20", feature="before"), size=24)
    save_checkpoint(tmp_path / "student", backbone, method="kdep", package="stillroom-distill")
    return tmp_path / "student"


def test_random_and_pretrained_have_the_net_and_the_input_of_another_checkpoint(student: Path) -> None:
    first = initial_backbone(str(student), None, seed=0)
    random = initial_backbone("random", str(student), seed=0)
    assert random.spec.input == first.spec.input and random.spec.name == first.spec.name
    assert not torch.equal(random.net.conv1.weight, first.net.conv1.weight)
    again, other = (initial_backbone("random", str(student), seed) for seed in (0, 1))
    assert torch.equal(random.net.conv1.weight, again.net.conv1.weight)
    assert not torch.equal(random.net.conv1.weight, other.net.conv1.weight)
    with pytest.raises(ValueError, match="cifar/resnet20 has no published weights"):
        initial_backbone("pretrained", str(student), seed=0)
    with pytest.raises(ValueError, match="--checkpoint random names no net: pass random:NAME, or the net with --like"):
        initial_backbone("random", None, seed=0)


def test_the_seed_decides_what_random_with_a_name_is() -> None:
    one, same, other = (initial_backbone("random:cifar/resnet20", None, seed).net.conv1.weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_weights_trained_with_labels_are_supervised_or_fine_tuned() -> None:
    methods = [trained_method(name) for name in ("random", "random:cifar/resnet20", "timm/resnet18", "runs/a")]
    assert methods == ["supervised", "supervised", "finetune", "finetune"]


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("timm/vit_tiny_patch16_224", 100, "the nearest sizes that work are 96 and 112 px"),
        ("timm/vit_tiny_patch16_224", 9, "the nearest sizes that work are 16 px"),
        ("timm/swin_tiny_patch4_window7_224", 100, "the nearest sizes that work are 224 px"),
        ("timm/convnext_atto", 8, "the nearest sizes that work are 32 px"),
    ],
)
def test_a_refused_size_names_the_nearest_sizes_that_work(name: str, size: int, nearest: str) -> None:
    backbone = build_backbone(name).train()
    with pytest.raises(ValueError, match=rf"{name} takes no images of {size} x {size} px .*: pass --size; {nearest}$"):
        refuse_size(backbone, size, size, "pass --size")
    refuse_size(backbone, 224, 224, "pass --size")
    assert all(module.training for module in backbone.modules())


def test_a_refused_shape_that_is_no_square_names_no_sizes() -> None:
    with pytest.raises(ValueError, match=r"no images of 24 x 16 px \(.*\): leave it$"):
        refuse_size(build_backbone("timm/vit_tiny_patch16_224"), 16, 24, "leave it")
