"""What SimReg's released code measures, quirks included: `linear/legacy-simreg-v1` and `knn/legacy-simreg-v1`."""

from dataclasses import dataclass
from typing import ClassVar

from stillroom.backbone.spec import FeaturePoint
from stillroom.eval_ssl.config import Metric, Mode
from stillroom.eval_ssl.protocols.knn import KnnConfig
from stillroom.eval_ssl.protocols.linear import LinearConfig
from stillroom.runs.schedule import Schedule, Step

SIZE, CROP_FRACTION = 224, 0.875
"""Resize to 256, centre crop of 224, for every net."""


@dataclass(frozen=True, kw_only=True)
class LegacySimregConfig(LinearConfig):
    """SimReg's linear evaluation as its code was released; by default on random crops, as its script runs it.

    Where it differs from `linear/simreg-v1`: features are standardised by the unbiased variance (n - 1); the classifier
    starts where `nn.Linear` does, not at zero; with `--mode cached` the last partial batch of each epoch is left out;
    the feature is read after the last ReLU and the input is 224 px of 256, whatever the checkpoint says. Its draws are
    unseeded, ours come from `--seed`. The last epoch is reported, as in its log; its `model_best` file, the best of the
    epochs that it tests, is not repeated.

    Reference: Navaneet et al., BMVC 2021, released code. Expected of MoCo-v2 ResNet-50 -> ResNet-18: 65.1 %.
    """

    as_released: ClassVar[bool] = True

    name: str = "legacy-simreg-v1"
    """Name of the recipe in the protocol id."""
    mode: Mode = "live"
    """Train on features of fixed centre crops (cached), or of random crops and flips, new in each epoch (live)."""
    lrs: tuple[float, ...] = (0.01,)
    """Learning rate."""
    weight_decays: tuple[float, ...] = (1e-4,)
    """Weight decay."""
    unit: tuple[bool, ...] = (True,)
    """Whether to L2-normalise features before they are standardised."""
    schedule: Schedule = Step(every=15, gamma=0.1)  # noqa: RUF009  # frozen
    feature: FeaturePoint | None = "after"
    """Read the pooled feature before or after the last activation; None as the checkpoint says."""
    size: int | None = SIZE
    """Input side, pixels; None as the checkpoint says."""
    crop_fraction: float | None = CROP_FRACTION
    """Crop over resized side, (0, 1]; None as the checkpoint says."""


@dataclass(frozen=True, kw_only=True)
class LegacySimregKnnConfig(KnnConfig):
    """SimReg's k-NN evaluation as its code was released: k = 1 and 20.

    Where it differs from `knn/v1`: unit vectors are rounded to float16, as its GPU index stores them, and compared by
    their Euclidean distance; equal votes are decided at random (unseeded there, by `--seed` here), not for the class
    with the nearest member; the feature is read after the last ReLU and the input is 224 px of 256, whatever the
    checkpoint says.

    Reference: Navaneet et al., BMVC 2021, released code. Expected of MoCo-v2 ResNet-50 -> ResNet-18: 54.8 % at k = 1.
    """

    name: ClassVar[str] = "legacy-simreg-v1"
    as_released: ClassVar[bool] = True

    k: tuple[int, ...] | None = (1, 20)
    """Numbers of neighbours, all in one pass; None: those of 1, 5, 10, 20, 100, 200 that TRAIN has images for."""
    metric: Metric = "l2"
    """Similarity to rank neighbours by: cosine, or l2 for the Euclidean distance."""
    feature: FeaturePoint | None = "after"
    """Read the pooled feature before or after the last activation; None as the checkpoint says."""
    size: int | None = SIZE
    """Input side, pixels; None as the checkpoint says."""
    crop_fraction: float | None = CROP_FRACTION
    """Crop over resized side, (0, 1]; None as the checkpoint says."""
