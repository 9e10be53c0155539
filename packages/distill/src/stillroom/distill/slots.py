"""The variants of a run's slots: view, alignment, head, distance, and the optimiser. A field's words are its help."""

from dataclasses import dataclass
from typing import Literal

# --- view: image -> what the nets see ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class KdepView:
    """Random crop, flip, colour jitter, PCA lighting.

    Reference: KDEP's released recipe (RandomResizedCrop 0.08-1, jitter 0.1, lighting 0.05).
    """

    min_scale: float = 0.08
    """Smallest crop, fraction of the image's area. For small images, or few, take 0.35."""
    jitter: float = 0.1
    """Brightness, contrast and saturation change by up to this fraction."""
    lighting: float = 0.05
    """Standard deviation of the PCA lighting noise."""


@dataclass(frozen=True, kw_only=True)
class WeakView:
    """SimReg's weak view: random crop and flip."""

    min_scale: float = 0.2
    """Smallest crop, fraction of the image's area."""


@dataclass(frozen=True, kw_only=True)
class StrongView:
    """SimReg's strong view: the weak one, then colour jitter (0.4, 0.4, 0.4, 0.1), grayscale and Gaussian blur."""

    min_scale: float = 0.2
    """Smallest crop, fraction of the image's area."""
    jitter: float = 0.8
    """How often colours change."""
    grayscale: float = 0.2
    """How often colours go."""
    blur: float = 0.5
    """How often the image is blurred, by 0.1 to 2 pixels at 224 px and in proportion at other sizes."""


@dataclass(frozen=True, kw_only=True)
class SameView:
    """The teachers see the student's view, the same crop and colours, each net at its own size."""


@dataclass(frozen=True, kw_only=True)
class FixedView:
    """The teachers see the centre crop of their evaluation, whatever the student sees."""


View = KdepView | WeakView | StrongView
TeacherView = SameView | FixedView | KdepView | WeakView | StrongView
"""All but `SameView` are drawn independently of the student's view."""


# --- alignment: the teacher's feature -> the target -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Raw:
    """No alignment: the target is the teacher's output as it is."""


@dataclass(frozen=True, kw_only=True)
class Svd:
    """SVD alone: components of the teacher's centred features."""

    dim: int | None = None
    """Components; None takes the student's width."""
    zero_fill: bool = False
    """Where the features have a lower rank, give zeros for the missing components instead of refusing."""
    components: Literal["largest", "middle", "smallest", "random"] = "largest"
    """Which of the components within the rank; all but `largest` are KDEP's ablations."""


@dataclass(frozen=True, kw_only=True)
class SvdPts(Svd):
    """KDEP: SVD, then power temperature scaling sign(z) |z / T|^(1/n)."""

    temperature: float = 0.1
    """T."""
    exponent: float = 3.0
    """n."""


@dataclass(frozen=True, kw_only=True)
class SvdWhitening(Svd):
    """SVD, then each component divided by its standard deviation."""


@dataclass(frozen=True, kw_only=True)
class SvdVarianceMatching(Svd):
    """SVD, then each component scaled to a given standard deviation."""

    to: Literal["line", "channels"] = "line"
    """line: the components' standard deviations, mapped linearly onto [low, high]. channels: those of the teacher's
    own channels, sorted, the largest to the first component."""
    low: float = 1.0
    high: float = 2.98


@dataclass(frozen=True, kw_only=True)
class ChannelSelection:
    """Some of the teacher's channels, as they are."""

    by: Literal["variance", "magnitude", "random"] = "variance"
    """The channels of largest variance, of largest mean absolute value, or drawn."""
    dim: int | None = None
    """Channels; None takes the student's width."""


@dataclass(frozen=True, kw_only=True)
class Interpolation:
    """The teacher's feature, read as a signal over its channels, at the nearest of `dim` even places."""

    dim: int | None = None
    """Places; None takes the student's width."""


@dataclass(frozen=True, kw_only=True)
class RandomProjection:
    """A Gaussian random projection of the teacher's feature."""

    dim: int | None = None
    """Projected width; None takes the student's width."""


@dataclass(frozen=True, kw_only=True)
class Nmf:
    """Non-negative factors of the teacher's post-activation features."""

    dim: int | None = None
    """Factors; None takes the student's width."""
    sweeps: int = 100
    """Multiplicative updates that find an image's weights on the factors."""


@dataclass(frozen=True, kw_only=True)
class Lda:
    """Linear discriminants of the labelled classes, which the data's folders name."""

    dim: int | None = None
    """Discriminants, below the number of classes; None takes the student's width."""


# subclasses before Svd: a command line takes a default for the first type it is an instance of
Alignment = (
    SvdPts
    | SvdWhitening
    | SvdVarianceMatching
    | Svd
    | Raw
    | ChannelSelection
    | Interpolation
    | RandomProjection
    | Nmf
    | Lda
)


# --- head: the student's feature -> the prediction --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NoHead:
    """No head: the student's pooled feature is the prediction."""


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """One linear layer with a batch norm: SimReg's linear head (before it), or KDEP's 1x1 convolution (after it)."""

    batch_norm: Literal["before", "after", "none"] = "before"


@dataclass(frozen=True, kw_only=True)
class MlpHead:
    """SimReg's MLP of 2 or 4 linear layers, d -> 2d -> (d -> 2d ->) D, a batch norm and a ReLU at each width 2d."""

    layers: Literal[2, 4] = 4
    as_released: bool = False
    """The 2-layer head of SimReg's released code, which has neither batch norm nor ReLU: a linear map."""


HeadConfig = NoHead | LinearHead | MlpHead


# --- distance: prediction, target -> loss -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mse:
    """Mean squared error over batch and dimensions."""

    unit_target: bool = True
    """Divide the target so that its mean square is 1: one loss weight then serves every teacher."""


@dataclass(frozen=True, kw_only=True)
class CosineDistance:
    """2 - 2 cos(prediction, target): the squared distance of the unit vectors."""


@dataclass(frozen=True, kw_only=True)
class KlDivergence:
    """T^2 KL(softmax(target / T), softmax(prediction / T)), for logits (Hinton et al. 2015)."""

    temperature: float = 4.0
    """T."""


Distance = Mse | CosineDistance | KlDivergence


# --- optimiser --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    nesterov: bool = False


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    beta1: float = 0.9
    beta2: float = 0.999


@dataclass(frozen=True, kw_only=True)
class Lars:
    """SGD with layer-wise adaptive rates, for large batches (You et al. 2017); biases and norms are not adapted."""

    momentum: float = 0.9
    trust: float = 0.001
    """Trust coefficient."""


Optimizer = Sgd | AdamW | Lars
