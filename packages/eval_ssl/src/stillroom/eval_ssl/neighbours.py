"""Exact search of nearest neighbours: ours, on any device, and faiss's."""

import importlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

Metric = Literal["cosine", "l2"]
Backend = Literal["torch", "faiss"]

_QUERY_ROWS = 512  # of one matrix product
_GROUP_RATIO = 4  # sorted out directly below so many rows a neighbour


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

    Raises:
        ValueError: k that does not fit, features that are not finite, a constant backbone (all training features
            equal), no room for one row of similarities, faiss that is not installed.
    """
    check_k([k], len(train_x) - (test_x is None))
    for each in (train_x, test_x):
        if each is not None and not bool(torch.isfinite(each).all()):
            raise ValueError("some features are not finite: they have no neighbours")
    if len(train_x) > 1 and bool((train_x == train_x[0]).all()):
        raise ValueError("the backbone gives the same feature for every training image: there are no neighbours")
    train, test = prepare(train_x, metric), None if test_x is None else prepare(test_x, metric)
    if metric == "l2":  # distances stay, and lose fewer digits, when the common mean is gone
        centre = train.mean(dim=0)
        train, test = train - centre, None if test is None else test - centre
    search = _search_faiss if backend == "faiss" else _search
    return search(train, test, k, metric, memory_gib)


def prepare(features: Float[Tensor, "n d"], metric: Metric) -> Float[Tensor, "n d"]:
    """float32, and for the cosine of unit length."""
    return normalize(features.float(), dim=1) if metric == "cosine" else features.float()


def _search(train: Tensor, test: Tensor | None, k: int, metric: Metric, memory_gib: float) -> tuple[Tensor, Tensor]:
    alone, asked = test is None, train if test is None else test
    held = int(memory_gib * 2**30 / 4)  # float32 numbers; the groups' maxima and candidates are a small part of it
    rows = min(_QUERY_ROWS, len(asked))
    columns = min(len(train), max(held // rows, 2 * k))
    rows = max(1, min(rows, held // columns))
    lengths = train.square().sum(dim=1) if metric == "l2" else None
    room = torch.empty(
        rows * columns, device=train.device
    )  # used over and over: fresh pages cost more than the product
    values, indices = [], []
    for start in range(0, len(asked), rows):
        query = asked[start : start + rows]
        best: tuple[Tensor, Tensor] | None = None
        for first in range(0, len(train), columns):
            block = train[first : first + columns]
            near = torch.mm(query, block.T, out=room[: len(query) * len(block)].view(len(query), len(block)))
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
    rest = torch.arange(g * groups, n, device=near.device)
    values, places = _sorted_largest(torch.cat([candidates, near[:, g * groups :]], dim=1), k)
    columns = chosen[:, None, :] + groups * torch.arange(g, device=near.device)[:, None]
    indices = torch.cat([columns.flatten(1), rest.expand(rows, -1)], dim=1).gather(1, places)
    last = values[:, -1:]
    outside = (maxima >= last).sum(dim=1) > (maxima.gather(1, chosen) >= last).sum(dim=1)
    if outside.any():  # rare: equal numbers stand in a group that was not chosen
        values[outside], indices[outside] = _sorted_largest(near[outside], k)
    return values, indices


def _sorted_largest(near: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same without groups; topk leaves open which of equal numbers it takes and in what order."""
    values, indices = near.topk(k, dim=1)
    by_position = indices.argsort(dim=1)
    values, indices = values.gather(1, by_position), indices.gather(1, by_position)
    by_value = values.argsort(dim=1, descending=True, stable=True)
    values, indices = values.gather(1, by_value), indices.gather(1, by_value)
    last = values[:, -1:]
    cut = (near == last).sum(dim=1) > (values == last).sum(dim=1)  # equal ones stand on both sides of the k-th
    if cut.any():  # rare: duplicate images, dead features
        sort = near[cut].sort(dim=1, descending=True, stable=True)
        values[cut], indices[cut] = sort.values[:, :k], sort.indices[:, :k]
    return values, indices


def _search_faiss(train: Tensor, test: Tensor | None, k: int, metric: Metric, _: float) -> tuple[Tensor, Tensor]:
    """IndexFlat; a row's own place among its neighbours is dropped."""
    faiss = _import_faiss()
    index: Any = faiss.IndexFlatIP(train.shape[1]) if metric == "cosine" else faiss.IndexFlatL2(train.shape[1])
    if faiss.get_num_gpus() and train.device.type == "cuda":
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), train.device.index or 0, index)
    index.add(train.cpu().numpy())
    scores, places = index.search((train if test is None else test).cpu().numpy(), k + (test is None))
    values, indices = torch.from_numpy(scores), torch.from_numpy(places)
    if metric == "l2":
        values = -values
    if test is None:
        other = indices != torch.arange(len(indices))[:, None]
        other[:, -1] &= ~other.all(dim=1)  # among more than k duplicates a row may miss itself
        values, indices = (each[other].view(len(each), k) for each in (values, indices))
    return _by_row_number(values.to(train.device), indices.to(train.device))


def _by_row_number(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Equal similarities in the order of their rows."""
    by_row = indices.argsort(dim=1)
    values, indices = values.gather(1, by_row), indices.gather(1, by_row)
    by_value = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, by_value), indices.gather(1, by_value)


def _import_faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ValueError("the faiss backend needs faiss: pip install 'stillroom-eval-ssl[faiss]'") from error
