"""eval_ssl's neighbour search, by torch and by faiss, against faiss alone, scikit-learn and the bare matrix product."""

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.config import Knn
from stillroom.eval_ssl import nearest_neighbours


def figures(settings: Knn) -> dict[str, Any]:
    """Seconds of each, their ratios, GFLOP/s, and the memory that ours takes beyond the features, GiB."""
    import faiss  # noqa: PLC0415  # the references come with the dev group
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415

    generator = torch.Generator().manual_seed(0)
    train = normalize(torch.randn(settings.n, settings.d, generator=generator))
    test = normalize(torch.randn(settings.queries, settings.d, generator=generator))
    index = faiss.IndexFlatIP(settings.d)
    index.add(train.numpy())
    brute = NearestNeighbors(n_neighbors=settings.k, metric="cosine", algorithm="brute").fit(train.numpy())
    few = test[: settings.sklearn_queries].numpy()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    nearest_neighbours(train, test, settings.k)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    tasks: dict[str, Callable[[], object]] = {
        "torch": lambda: nearest_neighbours(train, test, settings.k),
        "faiss_backend": lambda: nearest_neighbours(train, test, settings.k, backend="faiss"),
        "faiss": lambda: index.search(test.numpy(), settings.k),
        "sklearn": lambda: brute.kneighbors(few),
        "product": lambda: multiply(test, train),
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(settings.repeats):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            scale = settings.queries / len(few) if name == "sklearn" else 1.0
            seconds[name].append(scale * (time.perf_counter() - began))
    flops = 2 * settings.n * settings.d * settings.queries
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
    """Compute all inner products and nothing else, in tiles that stay in the cache: the machine's limit."""
    tile = torch.empty(1024, 2048)
    for rows in test.split(1024):
        for columns in train.split(2048):
            torch.mm(rows, columns.T, out=tile[: len(rows), : len(columns)])
