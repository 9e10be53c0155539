"""k-NN votes against votes worked by hand, loops and scikit-learn."""

import numpy as np
import pytest
import torch
from clouds import arc, assert_nearest, random_set, reference_similarities, signs
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from stillroom.eval_ssl import knn_classify, nearest_neighbours, retrieval_map
from stillroom.eval_ssl.voting import predict


def vote_is_tied(labels: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    counts = np.stack([np.bincount(row, minlength=labels.max() + 1) for row in labels[neighbours]])
    return (counts == counts.max(axis=1, keepdims=True)).sum(axis=1) > 1


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


def test_several_k_in_one_pass_equal_single_passes_even_where_similarities_tie() -> None:
    train_x, test_x = signs(200, 4, seed=2), signs(80, 4, seed=3)
    labels = torch.randint(5, (200,), generator=torch.Generator().manual_seed(4))
    together = knn_classify(train_x, labels, test_x, (20, 1, 5, 200))
    assert list(together) == [20, 1, 5, 200]
    for k, classes in together.items():
        assert torch.equal(classes, knn_classify(train_x, labels, test_x, (k,))[k])


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


def test_one_training_image_is_everybodys_neighbour() -> None:
    assert knn_classify(torch.ones(1, 3), torch.tensor([2]), torch.randn(4, 3), (1,))[1].tolist() == [2] * 4
