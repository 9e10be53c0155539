"""Mean and covariance of features, streamed: memory O(d^2), whatever the number of images."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.runs import Run

BLOCK_ROWS = 512
"""Rows of one float32 matrix product. Longer blocks lose digits, shorter ones lose speed."""
_STATE = ("_closed", "_shift", "_sum", "_absolute", "_products", "_block", "_filled")
_NUM_STRIPS = 4  # 10/16 of the whole product, and of its sum in float64


class Moments:
    """Streaming count, mean, mean absolute value and covariance of d-dimensional features.

    Rows are collected into blocks of `BLOCK_ROWS`; each block is shifted by the mean of the first one, multiplied in
    float32 and summed in float64. The shift keeps the products small where the mean is large relative to the spread.

    Args:
        dim: d.
        device: of the sums, ideally that of the features; it must support float64.

    Reference: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The American Statistician 1983,
    for the shift and for merging parts.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self._closed = 0  # rows in the sums
        self._shift: Tensor | None = None
        self._sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self._absolute = torch.zeros(dim, dtype=torch.float64, device=device)
        self._products = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._block = torch.empty(BLOCK_ROWS, dim, device=device)
        self._filled = 0
        width = -(-dim // _NUM_STRIPS)
        self._strips = [slice(first, min(first + width, dim)) for first in range(0, dim, width)]

    @property
    def dim(self) -> int:
        """d."""
        return len(self._sum)

    @property
    def count(self) -> int:
        """The number of rows so far."""
        return self._closed + self._filled

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """Add a batch of any size.

        Raises:
            ValueError: features that are not finite.
        """
        if not torch.isfinite(features).all():
            raise ValueError("the teacher's features are not finite: check its weights and its input normalisation")
        for rows in features.float().split(BLOCK_ROWS):
            head = rows[: BLOCK_ROWS - self._filled]
            self._add(head)
            self._add(rows[len(head) :])

    def _add(self, rows: Tensor) -> None:
        self._block[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)
        if self._filled == BLOCK_ROWS:
            self._close_block()

    def _close_block(self) -> None:
        if self._filled == 0:
            return
        block = self._block[: self._filled]
        if self._shift is None:
            self._shift = block.mean(dim=0)
        self._absolute += block.abs().sum(dim=0, dtype=torch.float64)
        block -= self._shift
        self._sum += block.sum(dim=0, dtype=torch.float64)
        for strip in self._strips:  # the products are symmetric: each strip only from its diagonal on
            self._products[strip, strip.start :] += block[:, strip].T @ block[:, strip.start :]
        self._closed += self._filled
        self._filled = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything, so that a pass goes on from here to the bit."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in _STATE:
            value = state[name]
            setattr(self, name, value.to(self._sum.device) if isinstance(value, Tensor) else value)

    def reduce(self, run: Run) -> None:
        """Merge the moments of all processes; afterwards every process has those of all images."""
        self._close_block()
        if run.world_size == 1:
            return
        count = run.sum(torch.tensor(self.count, device=self._sum.device))
        shift = torch.zeros_like(self._sum) if self._shift is None else self._shift.double()
        total = run.sum(self._sum + self.count * shift)
        mean = total / count
        # Move each part's products from its own shift to the common mean.
        offset = shift - mean
        self._products += torch.outer(self._sum, offset) + torch.outer(offset, self._sum)
        self._products += self.count * torch.outer(offset, offset)
        run.sum(self._products)
        run.sum(self._absolute)
        self._closed = int(count)
        self._shift = mean.float()
        self._sum = self.count * (mean - self._shift.double())  # the rounding error of the shift

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """The mean, float64."""
        self._close_block()
        if self._shift is None:
            raise ValueError("no features were added: there is no mean")
        return self._shift.double() + self._sum / self.count

    @property
    def magnitude(self) -> Float[Tensor, " d"]:
        """The mean absolute value of each dimension, float64."""
        self._close_block()
        if self.count == 0:
            raise ValueError("no features were added: there is no magnitude")
        return self._absolute / self.count

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The covariance, float64, divided by n."""
        self._close_block()
        if self.count == 0:
            raise ValueError("no features were added: there is no covariance")
        centred = self._sum / self.count
        covariance = self._products / self.count - torch.outer(centred, centred)
        return covariance.triu() + covariance.triu(1).T


class ClassMoments:
    """Streaming scatter of labelled features, within and between classes: the statistics of LDA.

    Args:
        dim: d.
        num_classes: K.
        device: of the sums.
    """

    def __init__(self, dim: int, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.all = Moments(dim, device)
        self._sums = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self._counts = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def update(self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> None:
        """Add a batch of any size with its labels, 0 to K - 1."""
        self.all.update(features)
        labels = labels.to(self._sums.device)
        self._sums.index_add_(0, labels, features.to(self._sums.device).double())
        self._counts += labels.bincount(minlength=len(self._counts))

    def state_dict(self) -> dict[str, Any]:
        """Everything; see `Moments.state_dict`."""
        return {"all": self.all.state_dict(), "sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.all.load_state_dict(state["all"])
        self._sums.copy_(state["sums"])
        self._counts.copy_(state["counts"])

    def reduce(self, run: Run) -> None:
        """Merge the moments of all processes."""
        self.all.reduce(run)
        run.sum(self._sums)
        run.sum(self._counts)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self._counts)

    @property
    def between(self) -> Float[Tensor, "d d"]:
        """The covariance of the class means about the common mean, each weighted by its fraction of the images."""
        means = self._sums / self._counts.clamp(min=1)[:, None]
        offsets = (means - self.all.mean) * (self._counts / self._counts.sum()).sqrt()[:, None]
        return offsets.T @ offsets

    @property
    def within(self) -> Float[Tensor, "d d"]:
        """The mean covariance inside the classes: that of all images minus the one between classes."""
        return self.all.covariance - self.between
