"""SimReg's released evaluations, against a plain re-implementation of their steps."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clouds import clouds, random_set
from evaluations import config_like
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.backbone import Normalize, build_backbone, replace_input
from stillroom.eval_ssl import KnnConfig, LegacySimregConfig, LegacySimregKnnConfig, Point, Recipe, evaluate, report
from stillroom.eval_ssl.augmented_probe import state_record, train_augmented
from stillroom.eval_ssl.evaluation import split
from stillroom.eval_ssl.features import Extractor, extract_features
from stillroom.eval_ssl.neighbours import nearest_neighbours, round_as_released
from stillroom.eval_ssl.probe import SgdProbes, batches, linear_probe
from stillroom.eval_ssl.voting import predict
from stillroom.images import ImageDataset, read_labelled
from stillroom.images.view import CropView
from stillroom.runs import Run, read_results
from stillroom.runs.schedule import Step

POINT = Point(lr=0.01, weight_decay=1e-4, unit=True)
RECIPE = Recipe(epochs=40, batch_size=64, schedule=Step(every=15, gamma=0.1), as_released=True, drop_last=True)


class Released:
    """The released steps: unit length, FullBatchNorm of the unbiased variance, nn.Linear, SGD, MultiStepLR(15, 30, 40).

    Its draws, the first weights and the order of the images, are passed.
    """

    def __init__(self, centre: Tensor, first: nn.Linear) -> None:
        unit = centre / centre.norm(2, dim=1, keepdim=True)
        variance, self.mean = torch.var_mean(unit, dim=0)
        self.inverse_std = 1.0 / torch.sqrt(variance + 1e-5)
        self.layer = first
        self.optimizer = torch.optim.SGD(first.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, milestones=[15, 30, 40])

    def __call__(self, x: Tensor) -> Tensor:
        unit = x / x.norm(2, dim=1, keepdim=True)
        return self.layer((unit - self.mean) * self.inverse_std)

    def epoch(self, steps: list[tuple[Tensor, Tensor]]) -> None:
        for x, y in steps:
            self.optimizer.zero_grad()
            cross_entropy(self(x), y).backward()
            self.optimizer.step()
        self.scheduler.step()


def first_layer(dim: int, num_classes: int, recipe: Recipe) -> nn.Linear:
    """The classifier as our run starts it, in float64."""
    ours = SgdProbes(dim, num_classes, [POINT], recipe, torch.device("cpu")).linear()
    layer = nn.Linear(dim, num_classes).double()
    layer.load_state_dict({"weight": ours.weight[0].T, "bias": ours.bias[0]})
    return layer


def test_cached_mode_is_the_released_loop_which_drops_the_last_partial_batch() -> None:
    x, y = clouds(count=300)
    queries, _ = clouds(count=50, seed=1)
    released = Released(x.double(), first_layer(12, 5, RECIPE))
    orders = [torch.cat([step.rows for step in batches(300, replace(RECIPE, drop_last=False), epoch)][:5])
              for epoch in range(40)]  # fmt: skip
    for order in orders:
        rows = [order[64 * step : 64 * (step + 1)] for step in range(300 // 64)]
        released.epoch([(x[row].double(), y[row]) for row in rows])
    ours = linear_probe(x, y, queries, 5, [POINT], RECIPE).logits
    torch.testing.assert_close(ours.double(), released(queries.double()).detach(), rtol=0, atol=1e-4)
    ours_v1 = linear_probe(x, y, queries, 5, [POINT], replace(RECIPE, as_released=False, drop_last=False)).logits
    assert (ours_v1 - ours).abs().max() > 1e-3


def test_live_mode_is_the_released_loop_which_keeps_the_last_partial_batch(
    labelled: Callable[..., Path], run: Run
) -> None:
    recipe = replace(RECIPE, epochs=2, batch_size=8, drop_last=False)
    files = read_labelled(labelled("train", per_class=6))
    torch.manual_seed(7)
    net = replace_input(build_backbone("cifar/resnet20"), size=16).eval()
    train = extract_features(net, files, run, workers=0, batch_size=4)
    released = Released(train.features.double(), first_layer(64, 3, recipe))
    crops, labels = ImageDataset(files, CropView(net.spec.input, 0.08), seed=recipe.seed), torch.tensor(files.labels)
    for epoch in range(2):
        steps = []
        for step in list(batches(18, recipe))[3 * epoch : 3 * epoch + 3]:
            images = torch.stack([crops[epoch, row][1] for row in step.rows.tolist()])
            with torch.no_grad():
                steps.append((net(Normalize(net.spec.input)(images)).pooled.double(), labels[step.rows]))
        released.epoch(steps)
    ours, done = train_augmented(Extractor(net), train, train.features, POINT, recipe, run, batch_size=8, workers=0)
    done()
    expected = released(train.features.double()).detach()
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-3)  # of features, not steps


def test_the_classifier_starts_as_a_linear_layer_does_and_by_the_seed() -> None:
    probes = [SgdProbes(400, 50, [POINT], replace(RECIPE, seed=seed), torch.device("cpu")) for seed in (0, 0, 1)]
    weight, bias = probes[0].state["weight"], probes[0].state["bias"]
    torch_layer = nn.Linear(400, 50)
    assert 0.99 / 20 < weight.abs().max() <= 1 / 20 and bias.abs().max() <= 1 / 20
    assert float(weight.std()) == pytest.approx(float(torch_layer.weight.detach().std()), rel=0.03)
    assert torch.equal(weight, probes[1].state["weight"]) and not torch.equal(weight, probes[2].state["weight"])


def test_saved_states_of_both_recipes_are_not_mixed_up(labelled: Callable[..., Path], run: Run) -> None:
    net = replace_input(build_backbone("cifar/resnet20"), size=16)
    train = extract_features(net, read_labelled(labelled("train", per_class=2)), run, workers=0)
    recipes = (RECIPE, replace(RECIPE, as_released=False))
    records = [state_record(Extractor(net), train, POINT, recipe, run, 8) for recipe in recipes]
    assert records[0] != records[1] and "released" not in str(records[1])


def legacy(config: KnnConfig, kind: type, **changes):
    """A released protocol on the small evaluation's images, at their size."""
    return config_like(config, kind, crop_fraction=1.0, **changes)


def test_linear_protocol_names_what_differs_and_counts_what_is_left_out(config: KnnConfig) -> None:
    preset = LegacySimregConfig(checkpoint=("a",), train=config.train, test=config.test, out=config.out)
    assert (preset.mode, preset.size, preset.crop_fraction, preset.epochs) == ("live", 224, 0.875, 40)
    cached = legacy(config, LegacySimregConfig, mode="cached", probe_batch_size=16, epochs=2)
    results = read_results(evaluate(cached))
    assert results.protocol == (
        "linear/legacy-simreg-v1 mode=cached feature=after size=16 crop=1 resize=short-side dtype=float32 "
        "unit-length,standardised variance=unbiased start=uniform last-batch=dropped "
        "schedule=step(every=15,gamma=0.1,warmup_epochs=0.0) epochs=2 batch=16 lrs=0.01 weight-decays=0.0001"
    )
    assert results.extra["left_out_each_epoch"] == 36 % 16
    assert results.extra["images"]["exif"] == "ignored"
    live = evaluate(replace(cached, mode="live", out=config.out.with_name("live")))
    assert "mode=live" in report(live) and "dropped" not in report(live)
    assert "left_out_each_epoch" not in read_results(live).extra


def test_too_few_images_for_one_batch_and_a_grid_are_one_sentence(config: KnnConfig) -> None:
    with pytest.raises(ValueError, match=r"36 images make no batch of 256, and partial batches are left out"):
        evaluate(legacy(config, LegacySimregConfig, mode="cached"))
    with pytest.raises(ValueError, match=r"legacy-simreg trains one setting, got 2"):
        evaluate(legacy(config, LegacySimregConfig, mode="cached", lrs=(0.1, 0.01)))


def released_votes(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, k: int) -> list[set[int]]:
    """The classes among which the released k-NN draws: those with most of the k nearest float16 unit vectors."""
    train, test = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16) for x in (train_x, test_x))
    drawn = []
    for query in test.astype(np.float64):
        distances = ((train.astype(np.float64) - query) ** 2).sum(axis=1)
        votes = Counter(train_y[np.argsort(distances, kind="stable")[:k]].tolist())
        drawn.append({label for label, count in votes.items() if count == max(votes.values())})
    return drawn


def test_knn_votes_are_the_released_ones_and_ties_are_drawn_among_all_tied_classes() -> None:
    train_x, train_y, test_x = random_set()
    similarities, rows = nearest_neighbours(round_as_released(train_x), round_as_released(test_x), 20, metric="l2")
    targets = torch.zeros(len(test_x), dtype=torch.long)
    by_seed = [predict(similarities, train_y[rows], targets, (1, 20), 4, tie_seed=seed) for seed in range(40)]
    for k in (1, 20):
        allowed = released_votes(train_x.numpy(), train_y.numpy(), test_x.numpy(), k)
        drawn = [{int(one[k].predicted[query]) for one in by_seed} for query in range(len(test_x))]
        assert drawn == allowed
        assert any(len(classes) > 1 for classes in allowed) == (k > 1)
        for one in by_seed:
            assert one[k].metrics()["top1"] == pytest.approx(float((one[k].predicted == 0).double().mean()))
            assert torch.equal(one[k].first_match, by_seed[0][k].first_match)  # of neighbours, not of votes
    again = predict(similarities, train_y[rows], targets, (1, 20), 4, tie_seed=3)
    assert torch.equal(again[20].predicted, by_seed[3][20].predicted)


def test_each_of_two_tied_classes_wins_half_of_the_draws() -> None:
    classes, targets = torch.tensor([[0, 1, 1, 0, 2]]).repeat(4000, 1), torch.ones(4000, dtype=torch.long)
    predictions = predict(torch.ones(4000, 5), classes, targets, (5,), 3, tie_seed=0)[5]
    assert set(predictions.predicted.tolist()) == {0, 1}
    assert predictions.metrics()["top1"] == pytest.approx(0.5, abs=0.03)


def test_knn_protocol_names_what_differs(config: KnnConfig) -> None:
    preset = LegacySimregKnnConfig(checkpoint=("a",), train=config.train, test=config.test, out=config.out)
    assert (preset.k, preset.metric, preset.size, preset.crop_fraction) == ((1, 20), "l2", 224, 0.875)
    [single] = split(legacy(config, LegacySimregKnnConfig))
    results = read_results(evaluate(single))
    assert results.protocol == (
        "knn/legacy-simreg-v1 vote=majority similarity=l2 unit-length,float16 ties=random feature=after size=16 crop=1 "
        "resize=short-side dtype=float32"
    )
    assert results.metrics["top1_k1"] > 0.9
    assert results.extra["images"]["exif"] == "ignored"
    assert report(config.out).splitlines()[-1].endswith("% top-1 at k = 20")
