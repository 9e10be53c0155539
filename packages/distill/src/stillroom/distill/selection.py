"""Alignments that KDEP is compared with and that need no basis: channels, interpolation, random projection."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stillroom.distill.moments import Moments

_SEED = 0  # of what is drawn: a fixed part of the method, not of a run


class SelectedChannels(nn.Module):
    """`dim` of the teacher's channels, in their own order, as they are.

    Args:
        feature_dim: D.
        dim: d.
        by: `variance`, `magnitude` (mean absolute value) or `random`.

    Attributes:
        channels_: (d,) which channels, ascending.

    Reference: KDEP (He et al., CVPR 2022), section 4.4, "channel selection".
    """

    channels_: Tensor

    def __init__(self, feature_dim: int, dim: int, by: str) -> None:
        super().__init__()
        refuse_wider(feature_dim, dim, "channel selection")
        self.by = by
        drawn = torch.randperm(feature_dim, generator=torch.Generator().manual_seed(_SEED))[:dim].sort().values
        self.register_buffer("channels_", drawn if by == "random" else torch.arange(dim))

    def fit(self, moments: Moments) -> "SelectedChannels":
        """Choose the channels by what the features showed; random ones are drawn already and need no fit."""
        shown = moments.covariance.diagonal() if self.by == "variance" else moments.magnitude
        order = shown.argsort(descending=True)
        self.channels_ = order[: len(self.channels_)].sort().values.to(self.channels_.device)
        return self

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        return features[:, self.channels_]


class InterpolatedChannels(nn.Module):
    """The feature read as a signal over its channels, at the nearest of `dim` even places: t_i = f[floor(i D / d)].

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
        drawn = torch.randn(feature_dim, dim, generator=torch.Generator().manual_seed(_SEED))
        self.register_buffer("projection_", drawn / dim**0.5)

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        return features @ self.projection_


def refuse_wider(feature_dim: int, dim: int, what: str) -> None:
    """Refuse a target wider than the feature it is chosen from."""
    if dim > feature_dim:
        raise ValueError(
            f"the student is {dim}-d, the teacher's feature only {feature_dim}-d: {what} cannot widen it; "
            f"choose a narrower student, a wider teacher, or a head"
        )
