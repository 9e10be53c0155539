"""Features to classify, for tests of classifiers and of nearest neighbours."""

import numpy as np
import torch
from torch import Tensor


def clouds(count: int = 300, dim: int = 12, num_classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(num_classes, (count,), generator=generator)
    return centres[labels] + torch.randn(count, dim, generator=generator), labels


def random_set(
    seed: int = 0, num_train: int = 150, num_test: int = 60, dim: int = 24, num_classes: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Training features, their classes, test features: class clouds that overlap, so that votes are split."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=generator)
    labels = torch.randint(num_classes, (num_train,), generator=generator)
    train = centres[labels] + 2.0 * torch.randn(num_train, dim, generator=generator)
    places = centres[torch.randint(num_classes, (num_test,), generator=generator)]
    return train, labels, places + 2.0 * torch.randn(num_test, dim, generator=generator)


def signs(num: int, dim: int, seed: int) -> Tensor:
    """Rows of plus and minus one: in 4 and 16 dimensions their cosines are exact, and many are equal."""
    return torch.randint(2, (num, dim), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def reference_similarities(train_x: Tensor, test_x: Tensor) -> np.ndarray:
    train, test = train_x.numpy().astype(np.float64), test_x.numpy().astype(np.float64)
    return (test / np.linalg.norm(test, axis=1, keepdims=True)) @ (
        train / np.linalg.norm(train, axis=1, keepdims=True)
    ).T


def assert_nearest(values: Tensor, rows: Tensor, similarities: np.ndarray) -> None:
    """Rows are those of the float64 reference, except where two similarities lie within 1e-6."""
    expected = np.argsort(-similarities, axis=1, kind="stable")[:, : rows.shape[1]]
    expected_values = np.take_along_axis(similarities, expected, axis=1)
    found = np.take_along_axis(similarities, rows.numpy(), axis=1)
    differ = rows.numpy() != expected
    assert (np.abs(found - expected_values)[differ] < 1e-6).all()
    assert all(len(set(row)) == len(row) for row in rows.tolist())
    np.testing.assert_allclose(values.numpy(), expected_values, rtol=0, atol=1e-6)


def arc(*degrees: float) -> Tensor:
    """Points on the unit circle."""
    angles = torch.tensor(degrees) * torch.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)
