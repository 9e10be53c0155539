"""Exact nearest-neighbour search: in torch, on any device, or by faiss."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.backbone.checks import above
from stillroom.eval_ssl.config import Backend, Metric
from stillroom.eval_ssl.extras import import_faiss
from stillroom.eval_ssl.features import is_constant
from stillroom.runs.progress import Progress

_QUERY_ROWS = 1024  # rows and columns of one matrix product: the sizes that a CPU multiplies fastest
_PRODUCT_COLUMNS = 2048
_FAISS_BLOCKS = {"distance_compute_blas_query_bs": 1024, "distance_compute_blas_database_bs": 8192}
_MIN_GROUPS = 4  # below, grouping costs more than it saves
_MIN_NORM = 1e-12
_TIE_PARTS = 16  # rows with ties are sorted in this many parts


def check_k(k: Sequence[int], num_images: int) -> None:
    """Refuse numbers of neighbours that `num_images` training images cannot give.

    Raises:
        ValueError: an empty list, or a number below 1 or above `num_images`.
    """
    if not k:
        raise ValueError("--k is empty: pass at least one number of neighbours")
    for number in k:
        if not 1 <= number <= num_images:
            raise ValueError(f"k = {number} does not fit {num_images} training images: choose k from 1 to {num_images}")


def nearest_neighbours(
    train_x: Float[Tensor, "n d"],
    test_x: Float[Tensor, "m d"] | None,
    k: int,
    *,
    metric: Metric = "cosine",
    backend: Backend = "torch",
    memory_gib: float = 1.0,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Find the k nearest training rows of each test row, nearest first: similarities and row indices.

    Exact, float32. A similarity is the cosine, or the negative squared Euclidean distance. Equal similarities are
    ordered by row index; which of several rows tied at the k-th place are returned is unspecified for faiss.

    Args:
        train_x, test_x: features, on any device; without `test_x` each training row's neighbours among the others.
        k: neighbours.
        metric: similarity.
        backend: `faiss` needs the extra `faiss`.
        memory_gib: upper bound of the similarities that the torch backend holds at once, GiB.
        progress: a bar over the test rows, advanced by the torch backend.

    Raises:
        ValueError: k that does not fit, features that are not finite, a constant backbone (all training features
            equal), memory that is not above 0, or faiss that is not installed.
    """
    check_k([k], len(train_x) - (test_x is None))
    if len(train_x) > 1 and is_constant(train_x):
        raise ValueError("the backbone gives the same feature for every training image: there are no neighbours")
    above(SimpleNamespace(memory_gib=memory_gib), 0, "memory_gib")
    train, test = prepare(train_x, test_x, metric)
    if backend == "faiss":
        return _search_faiss(train, test, k, metric)
    return search_torch(train, test, k, metric, memory_gib, progress)


def prepare(
    train_x: Float[Tensor, "n d"], test_x: Float[Tensor, "m d"] | None, metric: Metric
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"] | None]:
    """Scale features for the search, see `scale`; for Euclidean distances also subtract their common mean.

    Raises:
        ValueError: features that are not finite.
    """
    train, test = scale(train_x, metric), None if test_x is None else scale(test_x, metric)
    if metric == "l2":  # the same distances, with fewer digits lost
        mean = train.mean(dim=0)
        train, test = train - mean, None if test is None else test - mean
    return train, test


def scale(features: Float[Tensor, "n d"], metric: Metric) -> Float[Tensor, "n d"]:
    """Convert to float32, and for the cosine L2-normalise; zero vectors stay zero.

    Raises:
        ValueError: features, or their norms, that are not finite.
    """
    features = features.float()
    norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    if not bool(torch.isfinite(norms).all()):
        raise ValueError("some features are not finite: they have no neighbours")
    return features / norms.clamp(min=_MIN_NORM) if metric == "cosine" else features


def round_as_released(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """L2-normalise, and round to float16: what the index of SimReg's released k-NN holds and compares.

    Reference: SimReg (Navaneet et al., BMVC 2021), released code: a flat L2 index of faiss on GPUs, stored in float16.
    """
    return scale(features, "cosine").half().float()


def search_torch(
    train: Float[Tensor, "n d"],
    test: Float[Tensor, "m d"] | None,
    k: int,
    metric: Metric,
    memory_gib: float,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """The torch backend of `nearest_neighbours`, on prepared features."""
    leave_one_out, queries = test is None, train if test is None else test

    # Blocks of similarities that fit the memory: some queries by some training rows.
    budget = int(memory_gib * 2**30 / 4)  # float32 numbers; the groups' maxima and candidates take little beside them
    rows = min(_QUERY_ROWS, len(queries))
    columns = min(len(train), max(budget // rows, 2 * k))
    rows = max(1, min(rows, budget // columns))
    tile_columns = _PRODUCT_COLUMNS if train.device.type == "cpu" else columns
    buffer = torch.empty(rows * columns, device=train.device)  # reused: fresh memory pages cost more than products
    squared_norms = train.square().sum(dim=1) if metric == "l2" else None

    values, indices = [], []
    parts = queries.split(rows)
    for number, query in enumerate(parts if progress is None else progress.over(parts)):
        start = number * rows
        best: tuple[Tensor, Tensor] | None = None
        for first in range(0, len(train), columns):
            # The similarities of a block, in tiles.
            block = train[first : first + columns]
            similarities = buffer[: len(query) * len(block)].view(len(query), len(block))
            for tile in range(0, len(block), tile_columns):
                columns_of_tile = slice(tile, tile + tile_columns)
                torch.mm(query, block[columns_of_tile].T, out=similarities[:, columns_of_tile])
            if squared_norms is not None:  # - |a - b|^2 = 2 a.b - |b|^2 - |a|^2; the last is constant along the row
                similarities.mul_(2).sub_(squared_norms[first : first + columns])
            if leave_one_out:
                diagonal = torch.arange(start, start + len(query), device=similarities.device) - first
                inside = (diagonal >= 0) & (diagonal < len(block))
                similarities[inside.nonzero().flatten(), diagonal[inside]] = -torch.inf

            # Their k largest, merged with those of the blocks before.
            value, index = largest(similarities, min(k, len(block)))
            best = _merge(best, (value, index + first), k)
        assert best is not None, "there is at least one training row"
        values.append(best[0] if squared_norms is None else best[0] - query.square().sum(dim=1, keepdim=True))
        indices.append(best[1])
    similarities = torch.cat(values)
    return similarities if squared_norms is None else similarities.clamp(max=0), torch.cat(indices)


def _merge(best: tuple[Tensor, Tensor] | None, more: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k largest of two blocks; the first one has the lower row indices."""
    if best is None:
        return more
    values, indices = torch.cat([best[0], more[0]], dim=1), torch.cat([best[1], more[1]], dim=1)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    return values.gather(1, order), indices.gather(1, order)


def largest(values: Float[Tensor, "q n"], k: int) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """Each row's k largest values in descending order, equal ones by column.

    The columns form n / g groups of g members each. The k groups with the largest maxima hold the k largest values, so
    only the maxima (n / g of them) and those groups' members (k g) are sorted, both few where g = sqrt(n / k).
    """
    rows, n = values.shape
    g = round((n / k) ** 0.5)
    if g < _MIN_GROUPS:
        return _sorted_largest(values, k)
    num_groups = n // g
    members = values[:, : g * num_groups].view(rows, g, num_groups)  # group j: columns j, j + num_groups, ...
    maxima = members.amax(dim=1)
    chosen = maxima.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
    candidates = members.gather(2, chosen[:, None, :].expand(-1, g, -1)).flatten(1)
    top, positions = _sorted_largest(torch.cat([candidates, values[:, g * num_groups :]], dim=1), k)
    ungrouped = positions - g * k  # positions among the columns that no group holds
    indices = torch.where(
        ungrouped < 0, chosen.gather(1, positions % k) + num_groups * (positions // k), g * num_groups + ungrouped
    )
    last = top[:, -1:]
    outside = (maxima >= last).sum(dim=1) > (maxima.gather(1, chosen) >= last).sum(dim=1)
    for tied in _in_parts(outside):  # rare: equal values in a group that was not chosen
        top[tied], indices[tied] = _sorted_largest(values[tied], k)
    return top, indices


def _in_parts(rows: Bool[Tensor, " q"]) -> Iterable[Int[Tensor, " p"]]:
    """Indices of those rows, a sixteenth of all at a time: sorting takes four times the memory of what it sorts."""
    indices = rows.nonzero().flatten()
    return indices.split(max(1, len(rows) // _TIE_PARTS)) if len(indices) else ()


def _sorted_largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`largest` without groups; topk does not specify which of equal values it takes, nor their order."""
    top, indices = _order_ties(*values.topk(k, dim=1))
    last = top[:, -1:]
    cut = (values == last).sum(dim=1) > (top == last).sum(dim=1)  # equal values on both sides of the k-th
    for tied in _in_parts(cut):  # rare: duplicate images, dead features
        sort = values[tied].sort(dim=1, descending=True, stable=True)
        top[tied], indices[tied] = sort.values[:, :k], sort.indices[:, :k]
    return top, indices


def _order_ties(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Descending values, equal ones in the order of their indices."""
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1)
    if tied.any():  # rare: see above
        by_index = indices[tied].argsort(dim=1)
        value, index = values[tied].gather(1, by_index), indices[tied].gather(1, by_index)
        by_value = value.argsort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = value.gather(1, by_value), index.gather(1, by_value)
    return values, indices


def _search_faiss(train: Tensor, test: Tensor | None, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """The faiss backend of `nearest_neighbours`, on prepared features; leave-one-out drops the row itself."""
    queries = train if test is None else test
    scores, rows = _query_faiss(train, queries, k + (test is None), metric)
    values, indices = torch.from_numpy(scores), torch.from_numpy(rows)
    if metric == "l2":
        values = -values
    if test is None:
        other = indices != torch.arange(len(indices))[:, None]
        other[:, -1] &= ~other.all(dim=1)  # among more than k duplicates a row may miss itself
        values, indices = (each[other].view(len(each), k) for each in (values, indices))
    return _order_ties(values.to(train.device), indices.to(train.device))


def _query_faiss(train: Tensor, queries: Tensor, k: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    faiss = import_faiss()
    train_x, test_x = train.cpu().numpy(), queries.cpu().numpy()
    faiss_metric = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    if faiss.get_num_gpus() and train.device.type == "cuda":
        index = faiss.IndexFlat(train.shape[1], faiss_metric)
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), train.device.index or 0, index)
        index.add(train_x)
        return index.search(test_x, k)
    before = {name: getattr(faiss.cvar, name) for name in _FAISS_BLOCKS}
    try:
        for name, size in _FAISS_BLOCKS.items():
            setattr(faiss.cvar, name, size)
        return faiss.knn(test_x, train_x, k, metric=faiss_metric)
    finally:
        for name, size in before.items():
            setattr(faiss.cvar, name, size)
