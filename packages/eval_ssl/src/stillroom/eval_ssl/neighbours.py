"""Exact search of nearest neighbours: ours, on any device, and faiss's."""

import importlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.backbone.progress import Progress
from stillroom.eval_ssl.config import Backend, Metric
from stillroom.eval_ssl.features import is_constant

_QUERY_ROWS = 1024  # of one matrix product, and below how many columns of it: what a CPU multiplies fastest
_PRODUCT_COLUMNS = 2048
_FAISS_BLOCKS = {"distance_compute_blas_query_bs": 1024, "distance_compute_blas_database_bs": 8192}
_GROUP_RATIO = 4  # sorted out directly below so many rows a neighbour
_NO_LENGTH = 1e-12
_PARTS = 16  # that rows with ties are sorted in


def check_k(k: Sequence[int], num_images: int) -> None:
    """Refuse numbers of neighbours that `num_images` training images cannot give.

    Raises:
        ValueError: no number at all, one below 1, or one above `num_images`.
    """
    if not k:
        raise ValueError("--k is empty: give at least one number of neighbours")
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
    """The k nearest training rows of each test row, nearest first: similarities and row numbers.

    Exact, float32. A similarity is the cosine, or minus the Euclidean distance squared. Equal ones are ordered by row
    number; faiss leaves open which of them it takes where they stand on both sides of the k-th.

    Args:
        train_x, test_x: features, on any device; without `test_x` each training row's neighbours among the others.
        k: neighbours.
        metric: what is near.
        backend: `faiss` needs the extra `faiss`.
        memory_gib: bound of the similarities held at once by the torch backend, GiB.
        progress: a bar of the test rows, which the torch backend moves.

    Raises:
        ValueError: k that does not fit, features that are not finite, a constant backbone (all training features
            equal), memory that is not above 0, faiss that is not installed.
    """
    check_k([k], len(train_x) - (test_x is None))
    if len(train_x) > 1 and is_constant(train_x):
        raise ValueError("the backbone gives the same feature for every training image: there are no neighbours")
    if not (memory_gib > 0 and math.isfinite(memory_gib)):
        raise ValueError(f"--memory-gib is {memory_gib}: it must be above 0, and finite")
    train, test = prepare(train_x, test_x, metric)
    if backend == "faiss":
        return _search_faiss(train, test, k, metric)
    return search_torch(train, test, k, metric, memory_gib, progress)


def prepare(
    train_x: Float[Tensor, "n d"], test_x: Float[Tensor, "m d"] | None, metric: Metric
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"] | None]:
    """Features as they are searched: see `scaled`; for Euclidean distances less their common mean.

    Raises:
        ValueError: features that are not finite.
    """
    train, test = scaled(train_x, metric), None if test_x is None else scaled(test_x, metric)
    if metric == "l2":  # distances stay, and lose fewer digits, when the common mean is gone
        centre = train.mean(dim=0)
        train, test = train - centre, None if test is None else test - centre
    return train, test


def scaled(features: Float[Tensor, "n d"], metric: Metric) -> Float[Tensor, "n d"]:
    """float32, and for the cosine of unit length, zero where there is no length.

    Raises:
        ValueError: features, or their squared lengths, that are not finite.
    """
    features = features.float()
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    if not bool(torch.isfinite(lengths).all()):
        raise ValueError("some features are not finite: they have no neighbours")
    return features / lengths.clamp(min=_NO_LENGTH) if metric == "cosine" else features


def search_torch(
    train: Float[Tensor, "n d"],
    test: Float[Tensor, "m d"] | None,
    k: int,
    metric: Metric,
    memory_gib: float,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """The torch backend of `nearest_neighbours`, on features that are prepared."""
    alone, asked = test is None, train if test is None else test
    held = int(memory_gib * 2**30 / 4)  # float32 numbers; the groups' maxima and candidates are a small part of it
    rows = min(_QUERY_ROWS, len(asked))
    columns = min(len(train), max(held // rows, 2 * k))
    rows = max(1, min(rows, held // columns))
    lengths = train.square().sum(dim=1) if metric == "l2" else None
    wide = _PRODUCT_COLUMNS if train.device.type == "cpu" else columns
    room = torch.empty(rows * columns, device=train.device)  # used over and over: fresh pages cost more than products
    values, indices = [], []
    parts = asked.split(rows)
    for number, query in enumerate(parts if progress is None else progress.over(parts)):
        start = number * rows
        best: tuple[Tensor, Tensor] | None = None
        for first in range(0, len(train), columns):
            block = train[first : first + columns]
            near = room[: len(query) * len(block)].view(len(query), len(block))
            for tile in range(0, len(block), wide):
                torch.mm(query, block[tile : tile + wide].T, out=near[:, tile : tile + wide])
            if lengths is not None:  # - |a - b|^2 = 2 a.b - |b|^2 - |a|^2, of which the last is the same for the row
                near.mul_(2).sub_(lengths[first : first + columns])
            if alone:
                own = torch.arange(start, start + len(query), device=near.device) - first
                inside = (own >= 0) & (own < len(block))
                near[inside.nonzero().flatten(), own[inside]] = -torch.inf
            value, place = largest(near, min(k, len(block)))
            best = _merge(best, (value, place + first), k)
        assert best is not None, "there is at least one training row"
        values.append(best[0] if lengths is None else best[0] - query.square().sum(dim=1, keepdim=True))
        indices.append(best[1])
    found = torch.cat(values)
    return found if lengths is None else found.clamp(max=0), torch.cat(indices)


def _merge(best: tuple[Tensor, Tensor] | None, more: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k best of two blocks, the first of lower row numbers."""
    if best is None:
        return more
    values, indices = torch.cat([best[0], more[0]], dim=1), torch.cat([best[1], more[1]], dim=1)
    kept = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    return values.gather(1, kept), indices.gather(1, kept)


def largest(near: Float[Tensor, "q n"], k: int) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """Each row's k largest numbers in falling order, equal ones by position.

    Columns stand in g groups' worth of strides: the k groups with the largest maxima hold the k largest numbers, so
    only the maxima (n / g of them) and those groups' members (k g) are sorted out, both few where g = sqrt(n / k).
    """
    rows, n = near.shape
    g = round((n / k) ** 0.5)
    if g < _GROUP_RATIO:
        return _sorted_largest(near, k)
    groups = n // g
    members = near[:, : g * groups].view(rows, g, groups)  # group j holds the columns j, j + groups, ...
    maxima = members.amax(dim=1)
    chosen = maxima.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
    candidates = members.gather(2, chosen[:, None, :].expand(-1, g, -1)).flatten(1)
    values, places = _sorted_largest(torch.cat([candidates, near[:, g * groups :]], dim=1), k)
    behind = places - g * k  # places among the columns that no group holds
    indices = torch.where(behind < 0, chosen.gather(1, places % k) + groups * (places // k), g * groups + behind)
    last = values[:, -1:]
    outside = (maxima >= last).sum(dim=1) > (maxima.gather(1, chosen) >= last).sum(dim=1)
    for tied in _in_parts(outside):  # rare: equal numbers stand in a group that was not chosen
        values[tied], indices[tied] = _sorted_largest(near[tied], k)
    return values, indices


def _in_parts(rows: Bool[Tensor, " q"]) -> Iterable[Int[Tensor, " p"]]:
    """The places of those rows, a sixteenth of all at a time: sorting takes four times the memory of what it sorts."""
    places = rows.nonzero().flatten()
    return places.split(max(1, len(rows) // _PARTS)) if len(places) else ()


def _sorted_largest(near: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same without groups; topk leaves open which of equal numbers it takes and in what order."""
    values, indices = _by_row_number(*near.topk(k, dim=1))
    last = values[:, -1:]
    cut = (near == last).sum(dim=1) > (values == last).sum(dim=1)  # equal ones stand on both sides of the k-th
    for tied in _in_parts(cut):  # rare: duplicate images, dead features
        sort = near[tied].sort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = sort.values[:, :k], sort.indices[:, :k]
    return values, indices


def _by_row_number(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Falling numbers, equal ones in the order of their rows."""
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1)
    if tied.any():  # rare: see above
        by_row = indices[tied].argsort(dim=1)
        value, index = values[tied].gather(1, by_row), indices[tied].gather(1, by_row)
        by_value = value.argsort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = value.gather(1, by_value), index.gather(1, by_value)
    return values, indices


def _search_faiss(train: Tensor, test: Tensor | None, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """faiss's exact search; a row's own place among its neighbours is dropped."""
    asked = train if test is None else test
    scores, places = _ask_faiss(train, asked, k + (test is None), metric)
    values, indices = torch.from_numpy(scores), torch.from_numpy(places)
    if metric == "l2":
        values = -values
    if test is None:
        other = indices != torch.arange(len(indices))[:, None]
        other[:, -1] &= ~other.all(dim=1)  # among more than k duplicates a row may miss itself
        values, indices = (each[other].view(len(each), k) for each in (values, indices))
    return _by_row_number(values.to(train.device), indices.to(train.device))


def _ask_faiss(train: Tensor, asked: Tensor, k: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    faiss = _import_faiss()
    known, queries = train.cpu().numpy(), asked.cpu().numpy()
    measure = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    if faiss.get_num_gpus() and train.device.type == "cuda":
        index = faiss.IndexFlat(train.shape[1], measure)
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), train.device.index or 0, index)
        index.add(known)
        return index.search(queries, k)
    before = {name: getattr(faiss.cvar, name) for name in _FAISS_BLOCKS}
    try:
        for name, size in _FAISS_BLOCKS.items():
            setattr(faiss.cvar, name, size)
        return faiss.knn(queries, known, k, metric=measure)
    finally:
        for name, size in before.items():
            setattr(faiss.cvar, name, size)


def _import_faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ValueError("the faiss backend needs faiss: pip install 'stillroom-eval-ssl[faiss]'") from error
