"""Alignments fitted from more than mean and covariance: NMF and LDA."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.distill.alignment import fix_signs
from stillroom.distill.moments import ClassMoments
from stillroom.distill.selection import refuse_wider

_RIDGE = 1e-4  # of the mean within-class variance, added to LDA's within-class scatter, which few images leave singular
_SEED = 0
_BLOCK_ROWS = 128
_REPEATS = 50  # MiniBatchNMF updates its factors once per call: on 2,000 rows the residual is 10 after 1, 1.3 after 50


class NmfAlignment(nn.Module):
    """Non-negative matrix factors: f ~ w H with w, H >= 0; the target is w, found by multiplicative updates.

    The factors are fitted by scikit-learn's `MiniBatchNMF`, batch by batch. A feature's weights then start equal and
    follow w <- w * (f H^T) / (w H H^T), which never increases |f - w H|^2.

    Args:
        feature_dim: D.
        dim: number of factors, d.
        sweeps: updates per feature.

    Attributes:
        factors_: (d, D), H.

    Reference: Lee and Seung, "Algorithms for non-negative matrix factorization", NeurIPS 2000, theorem 1.
    """

    factors_: Tensor

    def __init__(self, feature_dim: int, dim: int, sweeps: int = 100) -> None:
        super().__init__()
        refuse_wider(feature_dim, dim, "NMF")
        self.sweeps = sweeps
        self._model: Any = None
        self._pending: list[np.ndarray] = []
        self.register_buffer("factors_", torch.zeros(dim, feature_dim))

    def partial_fit(self, features: Float[Tensor, "b D"]) -> "NmfAlignment":
        """Fit a batch. Rows are collected into blocks larger than the number of factors.

        Raises:
            ValueError: negative features, or scikit-learn is not installed.
        """
        if float(features.min()) < 0:
            raise ValueError(
                "NMF needs features that are not negative: read them after the last activation (--teacher.feature "
                "after) of a net whose activation is a ReLU"
            )
        self._pending.append(features.cpu().double().numpy())
        if sum(map(len, self._pending)) >= max(_BLOCK_ROWS, 2 * len(self.factors_)):
            self._fit_pending()
        return self

    def finish(self) -> "NmfAlignment":
        """Fit the rows that are left over.

        Raises:
            ValueError: fewer images in total than factors.
        """
        if self._model is None and sum(map(len, self._pending)) < len(self.factors_):
            raise ValueError(
                f"{sum(map(len, self._pending))} images cannot determine {len(self.factors_)} factors of NMF"
            )
        if self._pending and (self._model is None or sum(map(len, self._pending)) >= len(self.factors_)):
            self._fit_pending()
        return self

    def _fit_pending(self) -> None:
        try:
            from sklearn.decomposition import MiniBatchNMF  # noqa: PLC0415  # an extra: only this alignment needs it
        except ImportError as error:
            raise ValueError("NMF needs scikit-learn: pip install 'stillroom-distill[nmf]'") from error
        if self._model is None:
            self._model = MiniBatchNMF(n_components=len(self.factors_), init="nndsvda", random_state=_SEED)
        block = np.concatenate(self._pending)
        for _ in range(_REPEATS):
            self._model.partial_fit(block)
        self._pending = []
        self.factors_.copy_(torch.from_numpy(np.ascontiguousarray(self._model.components_)))

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        tiny = torch.finfo(features.dtype).tiny
        products, gram = features.clamp(min=0) @ self.factors_.T, self.factors_ @ self.factors_.T
        weights = torch.full_like(products, 1.0) * (products.sum(1, keepdim=True) / gram.sum().clamp(min=tiny))
        for _ in range(self.sweeps):
            weights = weights * products / (weights @ gram).clamp(min=tiny)
        return weights


class LdaAlignment(nn.Module):
    """Fisher's linear discriminants: the d directions of largest variance between classes, white within classes.

    The columns of W solve S_b w = lambda S_w w; the target is (f - mean) W, whose within-class covariance is 1.

    Args:
        feature_dim: D.
        dim: number of discriminants, d, below the number of classes.

    Attributes:
        mean_: (D,) mean feature.
        basis_: (D, d) discriminants, strongest first.

    Reference: Fisher 1936; Rao 1948 for several classes. One of KDEP's comparisons (its released code).
    """

    mean_: Tensor
    basis_: Tensor

    def __init__(self, feature_dim: int, dim: int) -> None:
        super().__init__()
        refuse_wider(feature_dim, dim, "LDA")
        self.register_buffer("mean_", torch.zeros(feature_dim))
        self.register_buffer("basis_", torch.zeros(feature_dim, dim))

    def fit(self, moments: ClassMoments) -> "LdaAlignment":
        """Fit the discriminants.

        Raises:
            ValueError: as many discriminants as classes, or more.
        """
        dim = self.basis_.shape[1]
        if dim >= moments.num_classes:
            raise ValueError(too_many_discriminants(moments.num_classes, dim))
        within = moments.within
        within += _RIDGE * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype, device=within.device)
        # With S_w = L L^T the problem is the symmetric one of L^-1 S_b L^-T.
        lower = torch.linalg.cholesky(within)
        inner = torch.linalg.solve_triangular(lower, moments.between, upper=False)
        inner = torch.linalg.solve_triangular(lower, inner.T, upper=False)
        vectors = torch.linalg.eigh((inner + inner.T) / 2).eigenvectors.flip(1)[:, :dim]
        self.basis_.copy_(fix_signs(torch.linalg.solve_triangular(lower.T, vectors, upper=True)))
        self.mean_.copy_(moments.all.mean)
        return self

    def forward(self, features: Float[Tensor, "b D"]) -> Float[Tensor, "b d"]:
        return (features - self.mean_) @ self.basis_


def too_many_discriminants(num_classes: int, dim: int) -> str:
    """The sentence that refuses more discriminants than LDA has."""
    return (
        f"{num_classes} classes have {num_classes - 1} discriminants, fewer than {dim}: "
        f"pass --alignment.dim and a head, or data with more classes"
    )
