"""The benchmark of eval_ssl's search: ours and faiss's backend against faiss, scikit-learn and the bare product."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.eval_ssl import nearest_neighbours


@dataclass(frozen=True)
class Knn:
    """k nearest neighbours by cosine: our two backends, faiss's exact search alone, scikit-learn's brute force."""

    n: int = 200_000
    """Training features."""
    d: int = 512
    """Dimensions."""
    queries: int = 10_000
    """Test features."""
    k: int = 200
    """Neighbours."""
    repeats: int = 3
    """Rounds, all of them in turn."""
    sklearn_queries: int = 1_000
    """Test features for scikit-learn, whose seconds are scaled up."""

    def figures(self) -> dict[str, Any]:
        """Seconds of each, ratios, GFLOP/s, and the memory that ours takes over the features."""
        import faiss  # noqa: PLC0415  # the rivals come with the dev group; the other benchmarks do without
        from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415

        generator = torch.Generator().manual_seed(0)
        train = normalize(torch.randn(self.n, self.d, generator=generator))
        test = normalize(torch.randn(self.queries, self.d, generator=generator))
        index = faiss.IndexFlatIP(self.d)
        index.add(train.numpy())
        brute = NearestNeighbors(n_neighbors=self.k, metric="cosine", algorithm="brute").fit(train.numpy())
        few = test[: self.sklearn_queries].numpy()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        nearest_neighbours(train, test, self.k)
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        tasks: dict[str, Callable[[], object]] = {
            "torch": lambda: nearest_neighbours(train, test, self.k),
            "faiss_backend": lambda: nearest_neighbours(train, test, self.k, backend="faiss"),
            "faiss": lambda: index.search(test.numpy(), self.k),
            "sklearn": lambda: brute.kneighbors(few),
            "product": lambda: multiply(test, train),
        }
        seconds: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(self.repeats):
            for name, task in tasks.items():
                began = time.perf_counter()
                task()
                share = self.queries / len(few) if name == "sklearn" else 1.0
                seconds[name].append(share * (time.perf_counter() - began))
        flops = 2 * self.n * self.d * self.queries
        median = {name: statistics.median(values) for name, values in seconds.items()}
        return {
            "seconds": seconds,
            "gflops_per_second": {name: flops / value / 1e9 for name, value in median.items()},
            "torch_extra_gib": extra,
            "speedup": [b / a for a, b in zip(seconds["torch"], seconds["faiss"], strict=True)],
            "faiss_backend_over_faiss": median["faiss"] / median["faiss_backend"],
            "over_sklearn": median["sklearn"] / median["torch"],
        }


def multiply(test: Tensor, train: Tensor) -> None:
    """All inner products and nothing else, in tiles that stay in the cache: what this machine can do."""
    room = torch.empty(1024, 2048)
    for rows in test.split(1024):
        for columns in train.split(2048):
            torch.mm(rows, columns.T, out=room[: len(rows), : len(columns)])
