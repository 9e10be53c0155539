"""k-NN against hand-worked votes, a NumPy float64 brute force, scikit-learn and faiss."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from stillroom.eval_ssl import knn_classify, nearest_neighbours, retrieval_map
from stillroom.eval_ssl.neighbours import largest
from stillroom.eval_ssl.voting import predict


def random_set(
    seed: int = 0, num_train: int = 150, num_test: int = 60, dim: int = 24, num_classes: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Training features, their classes, test features: class clouds that overlap, so that votes are split."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=generator)
    labels = torch.randint(num_classes, (num_train,), generator=generator)
    train = centres[labels] + 2.0 * torch.randn(num_train, dim, generator=generator)
    places = centres[torch.randint(num_classes, (num_test,), generator=generator)]
    return train, labels, places + 2.0 * torch.randn(num_test, dim, generator=generator)


def signs(num: int, dim: int, seed: int) -> Tensor:
    """Rows of plus and minus one: in 4 and 16 dimensions their cosines are exact, and many are equal."""
    return torch.randint(2, (num, dim), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def reference_similarities(train_x: Tensor, test_x: Tensor) -> np.ndarray:
    train, test = train_x.numpy().astype(np.float64), test_x.numpy().astype(np.float64)
    return (test / np.linalg.norm(test, axis=1, keepdims=True)) @ (
        train / np.linalg.norm(train, axis=1, keepdims=True)
    ).T


def assert_nearest(values: Tensor, rows: Tensor, similarities: np.ndarray) -> None:
    """Rows are those of the float64 reference, except where two similarities lie within 1e-6."""
    expected = np.argsort(-similarities, axis=1, kind="stable")[:, : rows.shape[1]]
    expected_values = np.take_along_axis(similarities, expected, axis=1)
    found = np.take_along_axis(similarities, rows.numpy(), axis=1)
    differ = rows.numpy() != expected
    assert (np.abs(found - expected_values)[differ] < 1e-6).all()
    assert all(len(set(row)) == len(row) for row in rows.tolist())
    np.testing.assert_allclose(values.numpy(), expected_values, rtol=0, atol=1e-6)


def vote_is_tied(labels: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    counts = np.stack([np.bincount(row, minlength=labels.max() + 1) for row in labels[neighbours]])
    return (counts == counts.max(axis=1, keepdims=True)).sum(axis=1) > 1


def arc(*degrees: float) -> Tensor:
    """Points on the unit circle."""
    angles = torch.tensor(degrees) * torch.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


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


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_predictions_are_scikit_learns_wherever_the_vote_is_not_tied(k: int) -> None:
    train_x, labels, test_x = random_set(seed=1)
    theirs = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    theirs.fit(train_x.numpy(), labels.numpy())
    expected = theirs.predict(test_x.numpy())
    tied = vote_is_tied(labels.numpy(), theirs.kneighbors(test_x.numpy(), return_distance=False))
    ours = knn_classify(train_x, labels, test_x, (k,))[k].numpy()
    assert (~tied).sum() > 15  # the comparison is not empty
    assert not tied.any() or k > 1
    np.testing.assert_array_equal(ours[~tied], expected[~tied])


@pytest.mark.parametrize(
    ("nearest_first", "winner"),
    [
        ((1, 0, 0, 1), 1),  # 2-2
        ((0, 1, 1, 0), 0),
        ((2, 0, 1), 2),  # 1-1-1
        ((2, 1, 0, 0, 1), 1),  # 2-2-1: the nearest of all does not lead, the nearest of those that lead wins
        ((2, 0, 1, 1, 0), 0),
        ((1, 0, 0), 0),  # a majority wins against the nearest
    ],
)
def test_a_tied_vote_goes_to_the_class_of_its_nearest_member(nearest_first: tuple[int, ...], winner: int) -> None:
    train_x = arc(*(10.0 * (place + 1) for place in range(len(nearest_first))))
    order = torch.randperm(len(nearest_first), generator=torch.Generator().manual_seed(1))  # distance, not row, decides
    k = len(nearest_first)
    predicted = knn_classify(train_x[order], torch.tensor(nearest_first)[order], arc(0.0), (k,), num_classes=3)
    assert predicted[k].tolist() == [winner]


def test_features_of_any_length_vote_by_their_angle_alone() -> None:
    train_x = arc(5.0, 40.0) * torch.tensor([[0.01], [100.0]])  # by inner product the second would win
    assert knn_classify(train_x, torch.tensor([0, 1]), arc(0.0) * 3, (1,))[1].tolist() == [0]


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


def test_several_k_in_one_pass_equal_single_passes_even_where_similarities_tie() -> None:
    train_x, test_x = signs(200, 4, seed=2), signs(80, 4, seed=3)
    labels = torch.randint(5, (200,), generator=torch.Generator().manual_seed(4))
    together = knn_classify(train_x, labels, test_x, (20, 1, 5, 200))
    assert list(together) == [20, 1, 5, 200]
    for k, classes in together.items():
        assert torch.equal(classes, knn_classify(train_x, labels, test_x, (k,))[k])


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


def test_weighted_votes_are_those_of_a_loop() -> None:
    train_x, labels, test_x = random_set(seed=11)
    near, rows = nearest_neighbours(train_x, test_x, 20)
    expected = []
    for values, classes in zip(near.double().numpy(), labels[rows].numpy(), strict=True):
        votes = [np.exp(values[classes == number] / 0.07).sum() for number in range(4)]
        expected.append(int(np.argmax(votes)))
    ours = knn_classify(train_x, labels, test_x, (20,), vote="weighted")[20]
    assert ours.tolist() == expected
    assert ours.tolist() != knn_classify(train_x, labels, test_x, (20,))[20].tolist()  # they do differ


def test_ranks_and_reciprocal_ranks_are_those_of_a_loop() -> None:
    train_x, labels, test_x = random_set(seed=12, num_classes=9)
    truth = torch.randint(9, (60,), generator=torch.Generator().manual_seed(1))
    near, rows = nearest_neighbours(train_x, test_x, 20)
    predictions = predict(near, labels[rows], truth, (1, 20), 9)
    for k, prediction in predictions.items():
        ranks, firsts = [], []
        for classes, true in zip(labels[rows][:, :k].tolist(), truth.tolist(), strict=True):
            distinct = list(dict.fromkeys(classes))  # by their nearest member
            order = sorted(distinct, key=lambda number: -classes.count(number))
            ranks.append(order.index(true) + 1 if true in order else 0)
            firsts.append(classes.index(true) + 1 if true in classes else 0)
        assert prediction.rank.tolist() == ranks and prediction.first_match.tolist() == firsts
        metrics = prediction.metrics()
        assert metrics["top1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
        assert metrics["top5"] == pytest.approx(np.mean([1 <= rank <= 5 for rank in ranks]))
        assert metrics["mrr"] == pytest.approx(np.mean([1 / first if first else 0 for first in firsts]))
        assert torch.equal(prediction.predicted == truth, prediction.rank == 1)
        assert torch.equal(prediction.predicted, knn_classify(train_x, labels, test_x, (k,), 9)[k])


@pytest.mark.parametrize("alone", [False, True])
def test_mean_average_precision_is_scikit_learns(alone: bool) -> None:
    train_x, labels, test_x = random_set(seed=13)
    truth = labels if alone else torch.randint(5, (60,), generator=torch.Generator().manual_seed(2))  # 4: unknown
    similarities = reference_similarities(train_x, train_x if alone else test_x)
    expected = []
    for row, true in enumerate(truth.tolist()):
        relevant, scores = (labels == true).numpy(), similarities[row]
        if alone:
            relevant, scores = np.delete(relevant, row), np.delete(scores, row)
        if relevant.any():
            expected.append(average_precision_score(relevant, scores))
    ours = retrieval_map(train_x, labels, None if alone else test_x, truth, memory_gib=7 * 40 * 150 / 2**30)
    assert ours == pytest.approx(np.mean(expected), rel=1e-6)  # seven rows at a time


def test_the_number_of_classes_may_be_larger_than_the_labels_seen() -> None:
    train_x, labels, test_x = random_set(seed=6)
    plain = knn_classify(train_x, labels, test_x, (5,))[5]
    assert torch.equal(knn_classify(train_x, labels, test_x, (5,), num_classes=9)[5], plain)


def test_half_precision_features_are_compared_in_float32() -> None:
    train_x, labels, test_x = random_set(seed=7)
    half = (train_x.bfloat16(), test_x.bfloat16())
    values, rows = nearest_neighbours(*half, 5)
    assert values.dtype == torch.float32
    assert_nearest(values, rows, reference_similarities(*(x.float() for x in half)))
    assert knn_classify(half[0], labels, half[1], (1,))[1].shape == (60,)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), data=st.data())
def test_scaling_features_by_positive_numbers_changes_nothing(seed: int, data: st.DataObject) -> None:
    train_x, labels, test_x = random_set(seed, num_train=20, num_test=5, dim=6, num_classes=3)
    exponents = st.lists(st.integers(-20, 20), min_size=20, max_size=20)
    powers = 2.0 ** torch.tensor(data.draw(exponents), dtype=torch.float32)[:, None]  # exact, so equal to the bit
    assert torch.equal(
        knn_classify(train_x * powers, labels, test_x * powers[:5], (4,))[4],
        knn_classify(train_x, labels, test_x, (4,))[4],
    )
    factors = torch.tensor(data.draw(st.lists(st.floats(1e-3, 1e3), min_size=20, max_size=20)))[:, None]
    values, rows = nearest_neighbours(train_x * factors, test_x * factors[:5], 4)
    assert_nearest(values, rows, reference_similarities(train_x, test_x))


@pytest.mark.parametrize(
    ("k", "text"),
    [
        ((0,), "k = 0 does not fit 150 training images: choose k from 1 to 150"),
        ((5, 0), "k = 0 does not fit 150 training images"),
        ((-1, 5), "k = -1 does not fit 150 training images"),
        ((1, 151), "k = 151 does not fit 150 training images: choose k from 1 to 150"),
        ((), "--k is empty: pass at least one number of neighbours"),
    ],
)
def test_numbers_of_neighbours_that_do_not_fit_are_refused(k: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        knn_classify(*random_set(), k)


@pytest.mark.parametrize("k", [0, 151])
def test_neighbours_refuse_a_k_that_does_not_fit(k: int) -> None:
    train_x, _, test_x = random_set()
    with pytest.raises(ValueError, match=f"k = {k} does not fit 150 training images"):
        nearest_neighbours(train_x, test_x, k)


def test_a_constant_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="the backbone gives the same feature for every training image"):
        nearest_neighbours(torch.ones(5, 3), torch.ones(2, 3), 1)


def test_one_training_image_is_everybodys_neighbour() -> None:
    assert knn_classify(torch.ones(1, 3), torch.tensor([2]), torch.randn(4, 3), (1,))[1].tolist() == [2] * 4


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
    with pytest.raises(ValueError, match=r"--memory-gib is .*: it must be above 0, and finite"):
        nearest_neighbours(train, test, 3, memory_gib=memory)
