"""The variants of a run's slots: view, alignment, head, distance and optimiser. Each checks its own fields.

A view is checked by the config that holds it: its flags are `--view` or `--teacher-view`.
"""

from dataclasses import dataclass
from typing import Literal

from stillroom.backbone.checks import above, at_least, within

# --- view: image -> what the nets see ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class KdepView:
    """Random crop, flip, colour jitter, PCA lighting.

    Reference: KDEP's released recipe (RandomResizedCrop 0.08-1, jitter 0.1, lighting 0.05).
    """

    min_scale: float = 0.08
    """Smallest crop, fraction of the image's area, in (0, 1]. For small or few images use 0.35."""
    jitter: float = 0.1
    """Largest relative change of brightness, contrast and saturation."""
    lighting: float = 0.05
    """Standard deviation of the PCA lighting noise."""

    def check(self, prefix: str) -> None:
        """Refuse bad fields by a ValueError; `prefix` of their flags: `view.` or `teacher-view.`."""
        within(self, 0, 1, "min_scale", ends="(]", prefix=prefix)
        at_least(self, 0, "jitter", "lighting", prefix=prefix)


@dataclass(frozen=True, kw_only=True)
class WeakView:
    """SimReg's weak view: random crop and flip."""

    min_scale: float = 0.2
    """Smallest crop, fraction of the image's area, in (0, 1]."""

    def check(self, prefix: str) -> None:
        """Refuse bad fields by a ValueError; `prefix` of their flags: `view.` or `teacher-view.`."""
        within(self, 0, 1, "min_scale", ends="(]", prefix=prefix)


@dataclass(frozen=True, kw_only=True)
class StrongView:
    """SimReg's strong view: the weak one, then colour jitter (0.4, 0.4, 0.4, 0.1), grayscale and Gaussian blur."""

    min_scale: float = 0.2
    """Smallest crop, fraction of the image's area, in (0, 1]."""
    jitter: float = 0.8
    """Probability of colour jitter."""
    grayscale: float = 0.2
    """Probability of grayscale."""
    blur: float = 0.5
    """Probability of a Gaussian blur of 0.1 to 2 pixels at 224 px, in proportion at other sizes."""

    def check(self, prefix: str) -> None:
        """Refuse bad fields by a ValueError; `prefix` of their flags: `view.` or `teacher-view.`."""
        within(self, 0, 1, "min_scale", ends="(]", prefix=prefix)
        within(self, 0, 1, "jitter", "grayscale", "blur", prefix=prefix)


@dataclass(frozen=True, kw_only=True)
class SameView:
    """The teachers see the student's view, the same crop and colours, each net at its own size."""


@dataclass(frozen=True, kw_only=True)
class FixedView:
    """The teachers see their evaluation view, a centre crop, whatever the student sees."""


View = KdepView | WeakView | StrongView
TeacherView = SameView | FixedView | KdepView | WeakView | StrongView
"""All but `SameView` are drawn independently of the student's view."""


# --- alignment: the teacher's feature -> the target -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Raw:
    """No alignment: the target is the teacher's output itself."""


@dataclass(frozen=True, kw_only=True)
class Svd:
    """SVD alone: components of the teacher's centred features."""

    dim: int | None = None
    """Number of components; None: the student's width."""
    zero_fill: bool = False
    """Where the features have a lower rank, fill the missing components with zeros instead of refusing."""
    components: Literal["largest", "middle", "smallest", "random"] = "largest"
    """Which of the components within the rank; all but `largest` are KDEP's ablations."""

    def __post_init__(self) -> None:
        _check_dim(self)


@dataclass(frozen=True, kw_only=True)
class SvdPts(Svd):
    """KDEP: SVD, then power temperature scaling sign(z) |z / T|^(1/n)."""

    temperature: float = 0.1
    """T, above 0."""
    exponent: float = 3.0
    """n, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        above(self, 0, "temperature", prefix="alignment.")
        at_least(self, 1, "exponent", prefix="alignment.")


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
    """Smallest standard deviation of `line`."""
    high: float = 2.98
    """Largest standard deviation of `line`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "low", "high", prefix="alignment.")


@dataclass(frozen=True, kw_only=True)
class ChannelSelection:
    """Some of the teacher's channels, unchanged."""

    by: Literal["variance", "magnitude", "signed-mean", "random"] = "variance"
    """The channels of largest variance, of largest mean absolute value (magnitude), of largest mean (signed-mean: what
    KDEP's released code calls magnitude), or random ones."""
    dim: int | None = None
    """Number of channels; None: the student's width."""

    def __post_init__(self) -> None:
        _check_dim(self)


@dataclass(frozen=True, kw_only=True)
class Interpolation:
    """Nearest-neighbour interpolation of the teacher's feature, read as a signal over its channels."""

    dim: int | None = None
    """Width of the target; None: the student's width."""

    def __post_init__(self) -> None:
        _check_dim(self)


@dataclass(frozen=True, kw_only=True)
class RandomProjection:
    """A Gaussian random projection of the teacher's feature."""

    dim: int | None = None
    """Width of the target; None: the student's width."""

    def __post_init__(self) -> None:
        _check_dim(self)


@dataclass(frozen=True, kw_only=True)
class Nmf:
    """Non-negative matrix factorisation of the teacher's post-activation features."""

    dim: int | None = None
    """Number of factors; None: the student's width."""
    sweeps: int = 100
    """Multiplicative updates that compute an image's weights on the factors."""

    def __post_init__(self) -> None:
        _check_dim(self)
        at_least(self, 0, "sweeps", prefix="alignment.")


@dataclass(frozen=True, kw_only=True)
class Lda:
    """Linear discriminants of the labelled classes, one subfolder of the data per class."""

    dim: int | None = None
    """Number of discriminants, below the number of classes; None: the student's width."""

    def __post_init__(self) -> None:
        _check_dim(self)


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


def _check_dim(alignment: "Svd | ChannelSelection | Interpolation | RandomProjection | Nmf | Lda") -> None:
    if alignment.dim is not None:
        at_least(alignment, 1, "dim", prefix="alignment.")


# --- head: the student's feature -> the prediction --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NoHead:
    """No head: the student's pooled feature is the prediction."""


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """One linear layer with a batch norm: SimReg's linear head (before it), or KDEP's 1x1 convolution (after it)."""

    batch_norm: Literal["before", "after", "none"] = "before"
    """Position of the batch norm relative to the linear layer."""


@dataclass(frozen=True, kw_only=True)
class MlpHead:
    """SimReg's MLP of 2 or 4 linear layers, d -> 2d -> (d -> 2d ->) D, a batch norm and a ReLU at each width 2d."""

    layers: Literal[2, 4] = 4
    """Number of linear layers."""
    as_released: bool = False
    """The 2-layer head of SimReg's released code, which has neither batch norm nor ReLU: a linear map."""


HeadConfig = NoHead | LinearHead | MlpHead


# --- distance: prediction, target -> loss -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mse:
    """Mean squared error over batch and dimensions."""

    unit_target: bool = True
    """Scale the target to a mean square of 1, so that one loss weight serves every teacher."""


@dataclass(frozen=True, kw_only=True)
class CosineDistance:
    """2 - 2 cos(prediction, target): the squared distance of the unit vectors."""


@dataclass(frozen=True, kw_only=True)
class KlDivergence:
    """T^2 KL(softmax(target / T), softmax(prediction / T)), for logits (Hinton et al. 2015)."""

    temperature: float = 4.0
    """T, above 0."""

    def __post_init__(self) -> None:
        above(self, 0, "temperature", prefix="distance.")


Distance = Mse | CosineDistance | KlDivergence


# --- optimiser --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    """SGD momentum."""
    nesterov: bool = False
    """Use Nesterov momentum."""

    def __post_init__(self) -> None:
        at_least(self, 0, "momentum", prefix="optimizer.")
        if self.nesterov and not self.momentum:
            raise ValueError("--optimizer.nesterov needs a momentum: set --optimizer.momentum above 0")


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    beta1: float = 0.9
    """Decay of the running mean of the gradient."""
    beta2: float = 0.999
    """Decay of the running mean of the squared gradient."""

    def __post_init__(self) -> None:
        within(self, 0, 1, "beta1", "beta2", ends="[)", prefix="optimizer.")


@dataclass(frozen=True, kw_only=True)
class Lars:
    """SGD with layer-wise adaptive rates, for large batches (You et al. 2017); biases and norms are not adapted."""

    momentum: float = 0.9
    """SGD momentum."""
    trust: float = 0.001
    """Trust coefficient: scale of each layer's adapted rate."""

    def __post_init__(self) -> None:
        at_least(self, 0, "momentum", "trust", prefix="optimizer.")


Optimizer = Sgd | AdamW | Lars
