"""SimReg's heads and KDEP's 1x1 convolution against plain NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillroom.distill import build_head
from stillroom.distill.slots import HeadConfig, LinearHead, MlpHead, NoHead

Array = np.ndarray


def linear(x: Array, layer: nn.Module) -> Array:
    assert isinstance(layer, nn.Linear)
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def norm(x: Array, layer: nn.Module) -> Array:
    """A batch norm in training: the batch's own mean and biased variance."""
    assert isinstance(layer, nn.BatchNorm1d)
    scale, shift = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + layer.eps) * scale + shift


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def simreg_4(x: Array, h: nn.Sequential) -> Array:
    """Linear(d, 2d) - BN - ReLU - Linear(2d, d) - Linear(d, 2d) - BN - ReLU - Linear(2d, D)."""
    x = linear(relu(norm(linear(x, h[0]), h[1])), h[3])
    return linear(relu(norm(linear(x, h[4]), h[5])), h[7])


REFERENCES = [
    (LinearHead(), lambda x, h: linear(norm(x, h[0]), h[1])),
    (LinearHead(batch_norm="after"), lambda x, h: norm(linear(x, h[0]), h[1])),
    (LinearHead(batch_norm="none"), lambda x, h: linear(x, h[0])),
    (MlpHead(layers=2), lambda x, h: linear(relu(norm(linear(x, h[0]), h[1])), h[3])),
    (MlpHead(layers=2, as_released=True), lambda x, h: linear(linear(x, h[0]), h[1])),
    (MlpHead(layers=4), simreg_4),
]


@pytest.mark.parametrize(("config", "reference"), REFERENCES)
def test_a_head_equals_its_numpy_reference(config: HeadConfig, reference) -> None:
    torch.manual_seed(0)
    head = build_head(config, 6, 5).double()
    x = torch.randn(32, 6, dtype=torch.float64)
    assert np.abs(head(x).detach().numpy() - reference(x.numpy(), head)).max() < 1e-6


@pytest.mark.parametrize(("layers", "widths"), [(2, [12, 5]), (4, [12, 6, 12, 5])])
def test_mlp_heads_are_twice_as_wide_inside(layers: int, widths: list[int]) -> None:
    head = build_head(MlpHead(layers=layers), 6, 5)
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == widths


def test_the_released_two_layers_are_a_linear_map() -> None:
    head = build_head(MlpHead(layers=2, as_released=True), 6, 5)
    a, b = torch.randn(2, 3, 6)

    def line(x: Tensor) -> Tensor:
        return head(x) - head(torch.zeros_like(x))

    assert torch.allclose(line(a + b), line(a) + line(b), atol=1e-5)


def test_no_head_needs_equal_widths() -> None:
    x = torch.randn(3, 5)
    assert build_head(NoHead(), 5, 5)(x) is x
    with pytest.raises(ValueError, match="the student is 6-d, the target 5-d and there is no head between them"):
        build_head(NoHead(), 6, 5)
