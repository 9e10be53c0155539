"""The order of an epoch: a permutation of any size, any part of which is computed alone."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stillroom.images.order import KeyedOrder

SEEDS = st.integers(0, 2**63 - 1)


@settings(max_examples=150, deadline=None)
@given(num_images=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 10_000))
@example(num_images=1, seed=0, epoch=0)
@example(num_images=2, seed=0, epoch=0)
@example(num_images=3, seed=7, epoch=1)
@example(num_images=2**11, seed=0, epoch=0)
@example(num_images=2**11 + 1, seed=0, epoch=0)
@example(num_images=45**2 - 1, seed=0, epoch=0)
@example(num_images=45**2 + 1, seed=0, epoch=0)
@example(num_images=46 * 45, seed=0, epoch=0)
def test_every_image_comes_once_at_any_size(num_images: int, seed: int, epoch: int) -> None:
    images = KeyedOrder(num_images, (seed, epoch)).take(0, num_images)
    assert np.array_equal(np.sort(images), np.arange(num_images))


@settings(max_examples=60, deadline=None)
@given(num_images=st.integers(1, 2**40), seed=SEEDS, data=st.data())
def test_any_part_is_computed_alone(num_images: int, seed: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, num_images - 1))
    count = data.draw(st.integers(0, min(50, num_images - first)))
    order = KeyedOrder(num_images, (seed, 3))
    images = order.take(first, count)
    assert len({*images.tolist()}) == count and all(0 <= image < num_images for image in images.tolist())
    assert images.tolist() == [int(order.take(first + place, 1)[0]) for place in range(count)]


def test_a_million_images_come_once_each() -> None:
    assert (np.bincount(KeyedOrder(1_000_003, (5, 2)).take(0, 1_000_003)) == 1).all()


def test_seeds_and_epochs_give_unrelated_orders() -> None:
    orders = [KeyedOrder(5000, key).take(0, 5000) for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for number, one in enumerate(orders):
        assert abs(np.corrcoef(one, np.arange(5000))[0, 1]) < 0.06, "4 sigma"
        for other in orders[:number]:
            assert (one == other).sum() < 8 and abs(np.corrcoef(one, other)[0, 1]) < 0.06


@pytest.mark.parametrize("num_images", [2, 5])
def test_few_images_take_each_order_equally_often(num_images: int) -> None:
    keys = 150 * num_images
    places = np.zeros((num_images, num_images))
    for seed in range(keys):
        places[KeyedOrder(num_images, (seed, 0)).take(0, num_images), np.arange(num_images)] += 1
    expected = keys / num_images
    assert (np.abs(places - expected) < 5 * np.sqrt(expected)).all()


def test_neighbours_are_spread_over_the_whole_set() -> None:
    batch = KeyedOrder(1_000_000, (0, 0)).take(0, 1000)
    counts = np.bincount(batch // 100_000, minlength=10)
    assert (np.abs(counts - 100) < 50).all(), "5 sigma"


def test_the_order_stays_what_it_is() -> None:
    """Runs are resumed by it: another order needs another version."""
    assert KeyedOrder(10, (0, 0)).take(0, 10).tolist() == [6, 3, 7, 0, 2, 9, 1, 8, 5, 4]
    assert KeyedOrder(1_281_167, (1, 2)).take(1_000_000, 4).tolist() == [
        1208603,
        1128759,
        818420,
        750867,
    ]
