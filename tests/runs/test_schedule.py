"""Learning rates worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.runs.schedule import Cosine, Step


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0.0, 1.0), (10.0, 0.75), (15.0, 0.5), (20.0, 0.25), (30.0, 0.0)],  # (1 + cos(pi / 3)) / 2 = 3/4
)
def test_a_cosine_falls_from_one_to_zero(epoch: float, factor: float) -> None:
    assert Cosine().factor(epoch, 30) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0.0, 0.0), (1.0, 0.2), (2.5, 0.5), (5.0, 1.0), (15.0, 0.75), (20.0, 0.5), (35.0, 0.0), (36.0, 0.0)],
)
def test_a_warm_up_is_a_line_to_the_base_rate_before_the_cosine(epoch: float, factor: float) -> None:
    assert Cosine(warmup_epochs=5.0).factor(epoch, 35) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0.0, 1.0), (29.9, 1.0), (30.0, 0.1), (59.9, 0.1), (60.0, 0.01), (89.0, 0.01)]
)
def test_steps_drop_the_rate_every_30_epochs(epoch: float, factor: float) -> None:
    assert Step().factor(epoch, 90) == pytest.approx(factor)


def test_every_gamma_and_warm_up_of_steps_are_heeded() -> None:
    schedule = Step(every=2, gamma=0.5, warmup_epochs=3.0)
    factors = [schedule.factor(epoch, 10) for epoch in (0.0, 1.5, 2.0, 3.0, 4.0)]
    assert factors == pytest.approx([0.0, 0.5, 0.5 * 2 / 3, 0.5, 0.25])


@given(
    schedule=st.builds(Cosine, warmup_epochs=st.floats(0, 10)) | st.builds(Step, warmup_epochs=st.floats(0, 10)),
    share=st.floats(0, 1),
    epochs=st.integers(1, 300),
)
def test_a_factor_is_never_below_zero_or_above_one(schedule: Cosine | Step, share: float, epochs: int) -> None:
    assert 0 <= schedule.factor(share * epochs, epochs) <= 1


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        (Cosine, {"warmup_epochs": -1.0}, r"--schedule\.warmup-epochs is -1\.0: it must be at least 0"),
        (Step, {"warmup_epochs": float("nan")}, r"--schedule\.warmup-epochs is nan: it must be at least 0, and finite"),
        (Step, {"gamma": float("nan")}, r"--schedule\.gamma is nan: it must be at least 0, and finite"),
        (Step, {"every": 0}, r"--schedule\.every is 0: it must be at least 1"),
    ],
)
def test_an_impossible_schedule_is_refused_when_it_is_made(kind: type, change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**change)
