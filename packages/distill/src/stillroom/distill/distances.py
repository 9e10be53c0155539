"""How far a prediction is from its target."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity, kl_div, log_softmax, mse_loss, softmax

from stillroom.distill.slots import CosineDistance, Distance, KlDivergence, Mse


def distance(config: Distance, prediction: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """The mean distance over a batch, computed in float32.

    - MSE: mean over batch and dimensions of (p - t)^2 (KDEP, section 3.2);
    - cosine: mean over the batch of 2 - 2 <p, t> / (|p| |t|), the squared distance of unit vectors (SimReg, eq. 1);
    - KL: T^2 times the mean over the batch of sum_k q_k (log q_k - log r_k), q and r the softmax of t / T and p / T.

    Reference: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, for T^2 and the last one.
    """
    prediction, target = prediction.float(), target.float()
    match config:
        case Mse():
            return mse_loss(prediction, target)
        case CosineDistance():
            return (2 - 2 * cosine_similarity(prediction, target, dim=1)).mean()
        case KlDivergence(temperature=t):
            return t**2 * kl_div(log_softmax(prediction / t, 1), softmax(target / t, 1), reduction="batchmean")


def dense_distance(prediction: Float[Tensor, "b c _ _"], target: Float[Tensor, "b c _ _"]) -> Float[Tensor, ""]:
    """2 - 2 cos between two maps, averaged over the places of a common grid: per axis, the coarser of the two.

    Reference: the pixel-wise form of SimReg's distance; compare Wang et al., "Dense Contrastive Learning", CVPR 2021.
    """
    grid = (min(prediction.shape[2], target.shape[2]), min(prediction.shape[3], target.shape[3]))
    ours, theirs = (adaptive_avg_pool2d(m.float(), grid) for m in (prediction, target))
    return (2 - 2 * cosine_similarity(ours, theirs, dim=1)).mean()
