"""Nearest neighbours against a NumPy float64 brute force, scikit-learn and faiss."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from clouds import arc, assert_nearest, random_set, reference_similarities, signs
from sklearn.neighbors import KNeighborsClassifier

from stillroom.eval_ssl import knn_classify, nearest_neighbours
from stillroom.eval_ssl.neighbours import largest


@pytest.mark.parametrize("k", [1, 7, 150])
def test_neighbours_are_those_of_a_float64_brute_force(k: int) -> None:
    train_x, _, test_x = random_set()
    values, rows = nearest_neighbours(train_x, test_x, k)
    assert values.shape == rows.shape == (60, k)
    assert_nearest(values, rows, reference_similarities(train_x, test_x))


def test_neighbours_are_found_across_tiles_of_columns_and_blocks_of_queries() -> None:
    train_x, _, test_x = random_set(num_train=5000, num_test=1100, dim=8)
    values, rows = nearest_neighbours(train_x, test_x, 7)
    assert_nearest(values, rows, reference_similarities(train_x, test_x))


def test_neighbours_are_those_of_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    train_x, _, test_x = random_set(seed=3)
    index = faiss.IndexFlatIP(train_x.shape[1])
    index.add(torch.nn.functional.normalize(train_x).numpy())
    scores, expected = index.search(torch.nn.functional.normalize(test_x).numpy(), 10)
    values, rows = nearest_neighbours(train_x, test_x, 10)
    np.testing.assert_allclose(values.numpy(), scores, rtol=0, atol=1e-6)
    similarities = reference_similarities(train_x, test_x)
    found, reference = (np.take_along_axis(similarities, ids, axis=1) for ids in (rows.numpy(), expected))
    assert (np.abs(found - reference)[rows.numpy() != expected] < 1e-6).all()


def test_equal_similarities_are_ordered_by_row_number() -> None:
    train_x = arc(90.0, 30.0, 30.0, 0.0, 30.0, 90.0)
    values, rows = nearest_neighbours(train_x, arc(0.0), 6)
    assert rows.tolist() == [[3, 1, 2, 4, 0, 5]]
    assert values[0, 1] == values[0, 2] == values[0, 3]


@pytest.mark.parametrize("k", [1, 3, 20, 70])
def test_of_equal_similarities_at_the_edge_of_k_the_first_rows_are_taken(k: int) -> None:
    train_x, test_x = signs(200, 4, seed=0), signs(9, 4, seed=1)
    expected = np.argsort(-reference_similarities(train_x, test_x), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(nearest_neighbours(train_x, test_x, k)[1].numpy(), expected)


@pytest.mark.parametrize("memory", [1e-9, 2e-6, 1.0])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_blocks_of_any_size_give_the_same_neighbours(memory: float, metric: str) -> None:
    train_x, _, test_x = random_set(seed=5, num_train=900)
    plain_values, plain_rows = nearest_neighbours(train_x, test_x, 10, metric=metric)
    values, rows = nearest_neighbours(train_x, test_x, 10, metric=metric, memory_gib=memory)
    assert torch.equal(rows, plain_rows)
    torch.testing.assert_close(values, plain_values, rtol=0, atol=1e-4 if metric == "l2" else 1e-6)


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("n", [1000, 1001, 1037])
def test_the_largest_of_groups_are_the_largest_of_all_even_where_many_are_equal(n: int, k: int) -> None:
    near = torch.randint(0, 60, (40, n), generator=torch.Generator().manual_seed(n + k)).float()
    values, columns = largest(near, k)
    sort = near.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, sort.values[:, :k]) and torch.equal(columns, sort.indices[:, :k])


@pytest.mark.parametrize("k", [1, 7])
def test_euclidean_neighbours_are_those_of_a_float64_brute_force(k: int) -> None:
    train_x, _, test_x = random_set(seed=8)
    train_x, test_x = train_x + 50, test_x + 50  # a common mean costs no digits
    values, rows = nearest_neighbours(train_x, test_x, k, metric="l2")
    train, test = train_x.double().numpy(), test_x.double().numpy()
    squares = ((test[:, None] - train[None]) ** 2).sum(axis=2)
    expected = np.argsort(squares, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows.numpy(), expected)
    np.testing.assert_allclose(-values.numpy(), np.take_along_axis(squares, expected, axis=1), rtol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_left_out_each_row_has_the_others_for_neighbours(metric: str, backend: str) -> None:
    if backend == "faiss":
        pytest.importorskip("faiss")
    train_x, labels, _ = random_set(seed=9)
    train_x[3] = train_x[4] = train_x[5]  # duplicates are neighbours, a row's own is not
    _, rows = nearest_neighbours(train_x, None, 8, metric=metric, backend=backend)
    for row in range(len(train_x)):
        others = torch.cat([train_x[:row], train_x[row + 1 :]])
        _, alone = nearest_neighbours(others, train_x[row : row + 1], 8, metric=metric)
        assert rows[row].tolist() == [place + (place >= row) for place in alone[0].tolist()]
    knn = KNeighborsClassifier(n_neighbors=1, metric="cosine" if metric == "cosine" else "sqeuclidean")
    expected = [
        knn.fit(np.delete(train_x.numpy(), row, 0), np.delete(labels.numpy(), row)).predict(train_x[row : row + 1])[0]
        for row in range(20)
    ]
    ours = knn_classify(train_x, labels, None, (1,), metric=metric, backend=backend)[1][:20]
    assert [ours[i] for i in range(20) if i not in (3, 4, 5)] == [expected[i] for i in range(20) if i not in (3, 4, 5)]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_both_backends_agree(metric: str) -> None:
    pytest.importorskip("faiss")
    train_x, _, test_x = random_set(seed=10, num_train=2000)
    ours, theirs = (
        nearest_neighbours(train_x, test_x, 50, metric=metric, backend=backend) for backend in ("torch", "faiss")
    )
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    assert (ours[1] == theirs[1]).float().mean() > 0.999


def test_a_backend_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"the faiss backend needs faiss: pip install 'stillroom-eval-ssl\[faiss\]'"):
        nearest_neighbours(torch.randn(5, 3), torch.randn(2, 3), 1, backend="faiss")


@pytest.mark.parametrize("k", [0, 151])
def test_neighbours_refuse_a_k_that_does_not_fit(k: int) -> None:
    train_x, _, test_x = random_set()
    with pytest.raises(ValueError, match=f"k = {k} does not fit 150 training images"):
        nearest_neighbours(train_x, test_x, k)


def test_a_constant_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="the backbone gives the same feature for every training image"):
        nearest_neighbours(torch.ones(5, 3), torch.ones(2, 3), 1)


@pytest.mark.parametrize("alone", [False, True])
def test_small_blocks_order_ties_and_leave_out_as_one_block_does(alone: bool) -> None:
    train, test = signs(700, 4, seed=0), signs(50, 4, seed=1)
    whole, small = (nearest_neighbours(train, None if alone else test, 30, memory_gib=memory) for memory in (1.0, 1e-6))
    assert torch.equal(whole[0], small[0]) and torch.equal(whole[1], small[1])
    similarities = reference_similarities(train, train if alone else test)
    if alone:
        np.fill_diagonal(similarities, -np.inf)
    expected = np.argsort(-similarities.round(6), axis=1, kind="stable")[:, :30]
    assert (small[1].numpy() == expected).all()


def test_ties_take_no_more_memory_than_distances_that_differ() -> None:
    """In a process of its own, whose peak is read: all rows of 26,000 equal in twos and more."""
    code = """
import resource, torch
from stillroom.eval_ssl import nearest_neighbours
torch.set_num_threads(1)
train = torch.randint(2, (26000, 4)).float() * 2 - 1
nearest_neighbours(train[:2000], train[:64], 20, memory_gib=.1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest_neighbours(train, train[:1024], 20, memory_gib=.1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 220, "MiB, of which 102 are the bound"


@pytest.mark.parametrize("memory", [0.0, -1.0, float("nan"), float("inf")])
def test_a_memory_bound_that_is_not_positive_is_refused(memory: float) -> None:
    train, _, test = random_set()
    with pytest.raises(ValueError, match=r"--memory-gib is .*: it must be above 0"):
        nearest_neighbours(train, test, 3, memory_gib=memory)
