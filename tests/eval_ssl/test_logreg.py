"""Logistic regression against scikit-learn's."""

import pytest
import torch
from clouds import clouds
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize

from stillroom.eval_ssl import few_shot, fit_logreg, logistic_regression
from stillroom.eval_ssl.logreg import draw_shots


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_weights_are_those_of_scikit_learn(penalty: float) -> None:
    x, y = clouds()
    ours = fit_logreg(x, y, 5, penalty, tolerance=1e-8)
    theirs = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-9, max_iter=5000).fit(x.double().numpy(), y.numpy())
    assert ours.max_gradient <= 1e-8 and ours.iterations < 1000
    torch.testing.assert_close(ours.weight.T, torch.from_numpy(theirs.coef_), rtol=0, atol=1e-5)
    centred = ours.bias - ours.bias.mean()  # a constant added to every class changes nothing
    expected = torch.from_numpy(theirs.intercept_)
    torch.testing.assert_close(centred, expected - expected.mean(), rtol=0, atol=5e-5)


def test_where_it_starts_changes_no_result() -> None:
    x, y = clouds()
    cold = fit_logreg(x, y, 5, 1e-3, tolerance=1e-8)
    warm = fit_logreg(x, y, 5, 1e-3, tolerance=1e-8, start=fit_logreg(x, y, 5, 1e-2))
    torch.testing.assert_close(warm.weight, cold.weight, rtol=0, atol=1e-5)


def test_a_fit_that_was_cut_short_reports_its_gradient() -> None:
    x, y = clouds()
    cut = fit_logreg(x, y, 5, 1e-6, iterations=2)
    assert cut.iterations == 2 and cut.max_gradient > 1e-4


def test_the_penalty_that_is_best_on_the_held_out_part_is_fitted_to_all() -> None:
    (x, y), (other, truth) = clouds(), clouds(seed=1)
    found = logistic_regression(x, y, other, 5, [1e3, 1e-2, 10.0])
    assert found.penalty == 1e-2 and len(found.accuracies) == 3 and len(found.fits) == 4
    assert found.accuracies[1] == max(found.accuracies) > 0.6
    scaler = StandardScaler().fit(x.double().numpy())
    theirs = LogisticRegression(C=100 / len(x), tol=1e-9, max_iter=5000)
    theirs.fit(scaler.transform(x.double().numpy()), y.numpy())
    agree = (found.logits.argmax(dim=1).numpy() == theirs.predict(scaler.transform(other.double().numpy()))).mean()
    assert agree > 0.99
    assert float((found.logits.argmax(dim=1) == truth).float().mean()) > 0.7
    alone = logistic_regression(x, y, other, 5, [1e-2])
    assert alone.accuracies == () and len(alone.fits) == 1
    torch.testing.assert_close(alone.logits, found.logits)


@pytest.mark.parametrize(
    ("penalties", "text"),
    [([], "--penalties is empty"), ([1.0, 0.0], "--penalties holds 0:"), ([float("nan")], "--penalties holds nan")],
)
def test_impossible_penalties_are_one_sentence(penalties: list[float], text: str) -> None:
    x, y = clouds()
    with pytest.raises(ValueError, match=text):
        logistic_regression(x, y, x, 5, penalties)


def test_a_draw_has_so_many_images_of_each_class_and_grows_by_whole_draws() -> None:
    labels = torch.tensor([0] * 9 + [2] * 5 + [1] * 7)
    two, four = draw_shots(labels, 2, seed=3), draw_shots(labels, 4, seed=3)
    assert labels[two].tolist() == [0, 0, 1, 1, 2, 2] and len(set(four.tolist())) == 12
    assert set(two.tolist()) < set(four.tolist())
    assert set(draw_shots(labels, 2, seed=4).tolist()) != set(two.tolist())
    with pytest.raises(ValueError, match="class number 2 has 5 training images: 6 shots need more"):
        draw_shots(labels, 6, seed=0)


def test_few_shots_are_scikit_learns_regression_on_unit_features() -> None:
    (x, y), (other, truth) = clouds(), clouds(seed=1)
    logits = few_shot(x, y, other, 5, shots=4, seed=2)
    rows = draw_shots(y, 4, seed=2)
    theirs = LogisticRegression(C=1.0, tol=1e-9, max_iter=5000)
    theirs.fit(normalize(x[rows], dim=1).double().numpy(), y[rows].numpy())
    expected = theirs.predict_log_proba(normalize(other, dim=1).double().numpy())
    torch.testing.assert_close(logits.log_softmax(dim=1), torch.from_numpy(expected), rtol=0, atol=1e-3)
    assert float((logits.argmax(dim=1) == truth).float().mean()) > 0.5  # chance is a fifth


def test_few_shots_of_a_constant_backbone_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="the same feature for every training image"):
        few_shot(torch.ones(6, 3), torch.tensor([0, 1] * 3), torch.ones(2, 3), 2, shots=1, seed=0)


def test_few_shots_of_features_that_differ_little_are_fitted_to_the_end() -> None:
    """As a net of random weights gives them: nearly one direction."""
    (x, y), (other, _) = clouds(), clouds(seed=1)
    near, asked = (torch.full_like(each, 40.0) + each for each in (x, other))
    logits = few_shot(near, y, asked, 5, shots=8, seed=0)
    rows = draw_shots(y, 8, seed=0)
    unit = [normalize(each, dim=1).double().numpy() for each in (near[rows], asked)]
    theirs = LogisticRegression(C=1.0, tol=1e-12, max_iter=50000).fit(unit[0], y[rows].numpy())
    expected = torch.from_numpy(theirs.decision_function(unit[1]))
    apart = [each - each.mean(dim=1, keepdim=True) for each in (logits, expected)]
    torch.testing.assert_close(*apart, rtol=0, atol=1e-5)
