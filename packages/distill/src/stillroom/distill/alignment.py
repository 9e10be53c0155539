"""From the teacher's feature to the student's target: SVD, power temperature scaling, a common scale."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.distill.moments import Moments

RANK_TOLERANCE = 1e-6
"""Components whose variance is below this fraction of the largest count as noise of the float32 pass."""


class SvdAlignment(nn.Module):
    """The first `dim` right singular vectors of the centred features: target = (f - mean) V[:, :dim].

    V comes from the eigenvectors of the streamed covariance, which are the same up to sign; the sign is fixed so that
    the largest entry of each component is positive.

    Args:
        dim: components to keep, d.
        zero_fill: where the features have fewer components than `dim`, give zeros for the rest instead of refusing.

    Attributes:
        mean_: (D,) mean feature.
        basis_: (D, d) components, strongest first; zero columns where filled.
        variance_: (D,) variance of every component, strongest first.
        rank_: numerical rank of the features.

    Reference: KDEP (He et al., CVPR 2022), section 3.3.
    """

    mean_: Tensor
    basis_: Tensor
    variance_: Tensor

    def __init__(self, dim: int, *, zero_fill: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.zero_fill = zero_fill
        self.rank_ = 0

    def fit(self, moments: Moments) -> "SvdAlignment":
        """Learn the basis.

        Raises:
            ValueError: more components than the feature has dimensions, fewer images than dimensions, or more
                components than the rank without `zero_fill`.
        """
        if self.dim > moments.dim:
            raise ValueError(
                f"the student is {self.dim}-d, the teacher's feature only {moments.dim}-d: SVD cannot widen it; "
                f"choose a narrower student or a wider teacher"
            )
        if moments.count <= moments.dim:
            raise ValueError(
                f"{moments.count} images cannot fix the {moments.dim} dimensions of the teacher's feature: give more "
                f"images, or fit on other data with `fit-alignment` and pass --alignment-file"
            )
        variance, vectors = torch.linalg.eigh(moments.covariance)  # ascending
        variance, vectors = variance.flip(0).clamp(min=0), vectors.flip(1)
        self.rank_ = int((variance > RANK_TOLERANCE * variance[0]).sum())
        if self.dim > self.rank_ and not self.zero_fill:
            raise ValueError(
                f"the teacher's feature has rank {self.rank_} of {moments.dim}, {self.dim} components were asked for: "
                f"read it after the last activation (--teacher.feature after), or fill the rest with zeros "
                f"(--alignment.zero-fill)"
            )
        basis = fix_signs(vectors[:, : self.dim])
        basis[:, self.rank_ :] = 0
        self.restore(moments.mean, basis, variance)
        return self

    def restore(self, mean: Float[Tensor, " D"], basis: Float[Tensor, "D d"], variance: Float[Tensor, " D"]) -> None:
        """Take a basis that was learnt before."""
        for name, tensor in (("mean_", mean), ("basis_", basis), ("variance_", variance)):
            self.register_buffer(name, tensor.float())

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        return (features.float() - self.mean_) @ self.basis_


def fix_signs(basis: Float[Tensor, "D d"]) -> Float[Tensor, "D d"]:
    """The same components, the largest entry of each positive."""
    return basis * basis.gather(0, basis.abs().argmax(dim=0)[None]).sign()


class PowerTemperatureScaling(nn.Module):
    """PTS(z) = sign(z) |z / T|^(1/n): odd, monotone, and a ratio r of standard deviations becomes about r^(1/n).

    It cures the domination of the first components of an SVD. Its slope at 0 is infinite: it stands on the teacher's
    side only, where nothing is differentiated.

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


class AlignedTarget(nn.Module):
    """What the student regresses: the aligned feature, divided so that its mean square over components is 1.

    Args:
        svd: fitted.
        scaling: PTS, or None.

    Attributes:
        scale_: root mean square of the aligned feature; see `calibrate`.
        std_ratio_: the std of the first over that of the last live component, before and after scaling (KDEP's "Std
            Ratio"); see `calibrate`.
    """

    scale_: Tensor

    def __init__(self, svd: SvdAlignment, scaling: PowerTemperatureScaling | None) -> None:
        super().__init__()
        self.svd = svd
        self.scaling = scaling
        self.register_buffer("scale_", torch.ones(()))
        self.std_ratio_ = (float("nan"), float("nan"))

    @property
    def dim(self) -> int:
        return self.svd.dim

    def calibrate(self, sample: Float[Tensor, "b D"]) -> "AlignedTarget":
        """Measure scale and std ratio on the features of some images; zero-filled components do not count."""
        live = min(self.svd.dim, self.svd.rank_)
        components = self.svd(sample)[:, :live]
        aligned = self._unscaled(sample)[:, :live]
        self.scale_.copy_(aligned.double().square().mean().sqrt())
        before, after = components.std(dim=0), aligned.std(dim=0)
        self.std_ratio_ = (float(before[0] / before[-1]), float(after[0] / after[-1]))
        return self

    def _unscaled(self, features: Tensor) -> Tensor:
        components = self.svd(features)
        return components if self.scaling is None else self.scaling(components)

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        return self._unscaled(features) / self.scale_
