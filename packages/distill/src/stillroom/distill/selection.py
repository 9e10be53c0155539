"""KDEP's comparison alignments without a learned basis: channel selection, interpolation, random projection."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stillroom.distill.moments import Moments

_SEED = 0  # of all random draws: a fixed part of the method, not of a run


class SelectedChannels(nn.Module):
    """`dim` of the teacher's channels, in their original order, unchanged.

    Args:
        feature_dim: D.
        dim: d.
        by: `variance`, `magnitude` (mean absolute value), `signed-mean` or `random`.

    Attributes:
        channels_: (d,) indices of the channels, ascending.

    Reference: KDEP (He et al., CVPR 2022), section 4.4, "channel selection"; its released code ranks "magnitude" by the
    signed mean, which differs where a feature is read before the last activation.
    """

    channels_: Tensor

    def __init__(self, feature_dim: int, dim: int, by: str) -> None:
        super().__init__()
        refuse_wider(feature_dim, dim, "channel selection")
        self.by = by
        random = torch.randperm(feature_dim, generator=torch.Generator().manual_seed(_SEED))[:dim].sort().values
        self.register_buffer("channels_", random if by == "random" else torch.arange(dim))

    def fit(self, moments: Moments) -> "SelectedChannels":
        """Select the channels by their statistics; random ones are drawn at construction and need no fit."""
        match self.by:
            case "variance":
                scores = moments.covariance.diagonal()
            case "signed-mean":
                scores = moments.mean
            case _:
                scores = moments.magnitude
        order = scores.argsort(descending=True)
        self.channels_ = order[: len(self.channels_)].sort().values.to(self.channels_.device)
        return self

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        return features[:, self.channels_]


class InterpolatedChannels(nn.Module):
    """Nearest-neighbour interpolation of the feature as a signal over its channels: t_i = f[floor(i D / d)].

    Args:
        dim: d.

    Reference: KDEP (He et al., CVPR 2022), section 4.4, "nearest interpolation".
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        return interpolate(features[:, None], size=self.dim, mode="nearest")[:, 0]


class ProjectedChannels(nn.Module):
    """A Gaussian random projection t = f R with R_ij from N(0, 1 / d), which keeps distances in expectation.

    Args:
        feature_dim: D.
        dim: d.

    Attributes:
        projection_: (D, d).

    Reference: Johnson and Lindenstrauss 1984; KDEP (He et al., CVPR 2022), section 4.4, "random projection".
    """

    projection_: Tensor

    def __init__(self, feature_dim: int, dim: int) -> None:
        super().__init__()
        gaussian = torch.randn(feature_dim, dim, generator=torch.Generator().manual_seed(_SEED))
        self.register_buffer("projection_", gaussian / dim**0.5)

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        return features @ self.projection_


def refuse_wider(feature_dim: int, dim: int, what: str) -> None:
    """Refuse a target wider than the teacher's feature.

    Args:
        feature_dim: width of the feature, D.
        dim: width of the target, d.
        what: name of the alignment.

    Raises:
        ValueError: d above D.
    """
    if dim > feature_dim:
        raise ValueError(
            f"the student is {dim}-d, the teacher's feature only {feature_dim}-d: {what} cannot widen it; "
            f"choose a narrower student, a wider teacher, or a head"
        )
