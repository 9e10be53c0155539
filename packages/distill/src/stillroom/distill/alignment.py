"""The map from the teacher's feature to the student's target: KDEP's SVD, the scaling after it, and a common scale."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.distill.moments import Moments
from stillroom.distill.slots import Svd, SvdPts, SvdVarianceMatching, SvdWhitening

RANK_TOLERANCE = 1e-6
"""Components whose variance is below this fraction of the largest count as float32 noise."""
_SEED = 0  # of random components


class SvdAlignment(nn.Module):
    """Right singular vectors of the centred features: target = (f - mean) V, for `dim` columns of V.

    V comes from the eigenvectors of the streamed covariance, which are the same up to sign; the sign is fixed so that
    the largest entry of each component is positive.

    Args:
        feature_dim: D, width of the teacher's feature.
        dim: number of components to keep, d.
        zero_fill: where the features have fewer components than `dim`, fill the rest with zeros instead of refusing.
        components: which d components within the rank: the `largest` (KDEP), or for comparison the `smallest`, those
            in the `middle`, or `random` ones.

    Attributes:
        mean_: (D,) mean feature.
        basis_: (D, d) components, strongest first; zero columns where filled.
        variance_: (D,) variance of every component of the feature, strongest first.
        std_: (d,) standard deviation of the kept components; 0 where filled.
        channel_std_: (d,) the d largest standard deviations of the teacher's own channels, sorted.
        rank_: numerical rank of the features; below the number of images.

    Reference: KDEP (He et al., CVPR 2022), section 3.3.
    """

    mean_: Tensor
    basis_: Tensor
    variance_: Tensor
    std_: Tensor
    channel_std_: Tensor
    rank_: Tensor

    def __init__(self, feature_dim: int, dim: int, *, zero_fill: bool = False, components: str = "largest") -> None:
        super().__init__()
        if dim > feature_dim:
            raise ValueError(
                f"the student is {dim}-d, the teacher's feature only {feature_dim}-d: SVD cannot widen it; "
                f"choose a narrower student or a wider teacher"
            )
        self.dim = dim
        self.zero_fill = zero_fill
        self.components = components
        self.register_buffer("mean_", torch.zeros(feature_dim))
        self.register_buffer("basis_", torch.zeros(feature_dim, dim))
        self.register_buffer("variance_", torch.zeros(feature_dim))
        self.register_buffer("std_", torch.zeros(dim))
        self.register_buffer("channel_std_", torch.zeros(dim))
        self.register_buffer("rank_", torch.zeros((), dtype=torch.long))

    def fit(self, moments: Moments) -> "SvdAlignment":
        """Fit the basis.

        Raises:
            ValueError: no more images than components, or more components than the rank without `zero_fill`.
        """
        if moments.count <= self.dim:
            raise ValueError(
                f"{moments.count} images cannot determine {self.dim} components of the teacher's feature: pass more "
                f"images, or fit on other data with `fit-alignment` and pass --alignment-file"
            )
        covariance = moments.covariance
        variance, vectors = torch.linalg.eigh(covariance)  # ascending
        variance, vectors = variance.flip(0).clamp(min=0), vectors.flip(1)
        rank = int((variance > RANK_TOLERANCE * variance[0]).sum())
        if self.dim > rank and not self.zero_fill:
            raise ValueError(
                f"the teacher's feature has rank {rank} of {moments.dim}, fewer than {self.dim} components: "
                f"read it after the last activation (--teacher.feature after), or fill the rest with zeros "
                f"(--alignment.zero-fill)"
            )
        selected = self._select(rank, variance.device)
        live = len(selected)
        self.mean_.copy_(moments.mean)
        self.basis_.zero_()[:, :live] = fix_signs(vectors[:, selected]).float()
        self.variance_.copy_(variance)
        self.std_.zero_()[:live] = variance[selected].sqrt().float()
        self.channel_std_.copy_(covariance.diagonal().clamp(min=0).sqrt().sort(descending=True).values[: self.dim])
        self.rank_.fill_(rank)
        return self

    def _select(self, rank: int, device: torch.device) -> Tensor:
        live = min(self.dim, rank)
        match self.components:
            case "largest":
                selected = torch.arange(live)
            case "smallest":
                selected = torch.arange(rank - live, rank)
            case "middle":
                first = (rank - live) // 2
                selected = torch.arange(first, first + live)
            case _:
                order = torch.randperm(rank, generator=torch.Generator().manual_seed(_SEED))
                selected = order[:live].sort().values
        return selected.to(device)

    @property
    def live(self) -> int:
        """The number of components that are not filled with zeros."""
        return min(self.dim, int(self.rank_))

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        return (features.float() - self.mean_) @ self.basis_


def fix_signs(basis: Float[Tensor, "D d"]) -> Float[Tensor, "D d"]:
    """Flip the signs of components so that the largest entry of each is positive."""
    return basis * basis.gather(0, basis.abs().argmax(dim=0)[None]).sign()


class PowerTemperatureScaling(nn.Module):
    """PTS(z) = sign(z) |z / T|^(1/n): odd, monotone, and a ratio r of standard deviations becomes about r^(1/n).

    It keeps the first components of an SVD from dominating the loss. Its slope at 0 is infinite: it is applied on the
    teacher's side only, where nothing is differentiated.

    Args:
        temperature: T, above 0. It only scales the result, by T^(-1/n).
        exponent: n, at least 1.

    Reference: KDEP (He et al., CVPR 2022), section 3.4, T = 0.1 and n = 3.
    """

    def __init__(self, temperature: float = 0.1, exponent: float = 3.0) -> None:
        super().__init__()
        if temperature <= 0 or exponent < 1:
            raise ValueError(f"PTS needs temperature > 0 and exponent >= 1, not {temperature} and {exponent}")
        self.temperature = temperature
        self.exponent = exponent

    def forward(self, components: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return components.sign() * (components / self.temperature).abs() ** (1 / self.exponent)


def component_gains(config: Svd, svd: SvdAlignment) -> Float[Tensor, " d"]:
    """The factor of each component of a fitted SVD, for the linear scalings; 1 for SVD alone.

    - whitening: 1 / s_i, so that every component has unit variance;
    - variance matching to a line: s'_i / s_i with s'_i = low + (s_i - s_min) / (s_max - s_min) (high - low);
    - variance matching to channels: s'_i the i-th largest standard deviation of the teacher's channels.

    Reference: KDEP (He et al., CVPR 2022), section 4.4 and its released code, which maps onto [1, 2.98].
    """
    live = svd.live
    std = svd.std_[:live]
    match config:
        case SvdWhitening():
            target_std = torch.ones_like(std)
        case SvdVarianceMatching(to="line"):
            spread = (std.max() - std.min()).clamp(min=torch.finfo(std.dtype).tiny)
            target_std = config.low + (std - std.min()) / spread * (config.high - config.low)
        case SvdVarianceMatching():
            target_std = svd.channel_std_[:live]
        case _:
            target_std = std
    gains = torch.ones_like(svd.std_)
    gains[:live] = target_std / std
    return gains


class ScaledSvd(nn.Module):
    """SVD and the scaling after it: PTS, or a gain per component.

    Args:
        config: one of the SVD alignments.
        feature_dim: D.
        dim: d.
    """

    gains_: Tensor

    def __init__(self, config: Svd, feature_dim: int, dim: int) -> None:
        super().__init__()
        self.config = config
        self.svd = SvdAlignment(feature_dim, dim, zero_fill=config.zero_fill, components=config.components)
        pts = (config.temperature, config.exponent) if isinstance(config, SvdPts) else None
        self.scaling = PowerTemperatureScaling(*pts) if pts else None
        self.register_buffer("gains_", torch.ones(dim))

    def fit(self, moments: Moments) -> "ScaledSvd":
        """Fit the basis and the gains; see `SvdAlignment.fit`."""
        self.svd.fit(moments)
        self.gains_.copy_(component_gains(self.config, self.svd))
        return self

    @property
    def live(self) -> int:
        """The number of components that are not filled with zeros."""
        return self.svd.live

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        components = self.svd(features) * self.gains_
        return components if self.scaling is None else self.scaling(components)


class AlignedTarget(nn.Module):
    """The target of a student: the aligned feature, scaled to a mean square of 1 over components.

    Args:
        alignment: one of the alignments, (b, D) -> (b, dim).
        feature_dim: D.
        dim: width of the target, d.

    Attributes:
        scale_: root mean square of the aligned feature; 1 until `calibrate`.
        std_ratio_: for SVD alignments, the std of the first over that of the last live component, before and after
            scaling (KDEP's "Std Ratio"); see `calibrate`.
    """

    scale_: Tensor

    def __init__(self, alignment: nn.Module, feature_dim: int, dim: int) -> None:
        super().__init__()
        self.alignment = alignment
        self.feature_dim = feature_dim
        self.dim = dim
        self.register_buffer("scale_", torch.ones(()))
        self.std_ratio_: tuple[float, float] | None = None

    def calibrate(self, sample: Float[Tensor, "b D"], *, unit: bool = True) -> "AlignedTarget":
        """Measure scale and std ratio on the features of some images; zero-filled components are left out.

        Args:
            sample: features.
            unit: whether the target is scaled to a mean square of 1; otherwise the scale stays 1.
        """
        live = self.alignment.live if isinstance(self.alignment, ScaledSvd) else self.dim
        aligned = self.alignment(sample)[:, :live]
        if unit:
            self.scale_.copy_(aligned.cpu().double().square().mean().sqrt())
        if isinstance(self.alignment, ScaledSvd):
            before, after = self.alignment.svd(sample)[:, :live].std(dim=0), aligned.std(dim=0)
            self.std_ratio_ = (float(before[0] / before[-1]), float(after[0] / after[-1]))
        return self

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        return self.alignment(features.float()) / self.scale_
