"""k-NN evaluations, from images to results and report."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from evaluations import small_config
from sklearn.neighbors import KNeighborsClassifier

from stillroom.backbone import build_backbone, replace_input
from stillroom.backbone.seeds import seed_everything
from stillroom.eval_ssl import (
    KnnConfig,
    evaluate,
    extract_features,
    knn_classify,
    report,
)
from stillroom.images import read_labelled
from stillroom.runs import Run, read_results

Make = Callable[..., Path]


def test_the_protocol_is_the_same_for_every_k(config: KnnConfig) -> None:
    one, many = (replace(config, k=k, out=config.out.with_name(str(len(k)))) for k in ((1,), (1, 3, 7)))
    assert read_results(evaluate(one)).protocol == read_results(evaluate(many)).protocol


def test_vote_metric_limit_and_retrieval_are_in_protocol_and_table(config: KnnConfig) -> None:
    changes = {"vote": "weighted", "metric": "l2", "limit": 12, "retrieval": True}
    results = read_results(evaluate(replace(config, **changes)))
    assert results.protocol == (
        "knn/v1 vote=weighted temperature=0.07 similarity=l2 feature=after size=16 crop=1 resize=short-side "
        "dtype=float32 limit=12"
    )
    assert (results.datasets["train"].count, results.datasets["test"].count) == (12, 12)
    assert 0.5 < results.metrics["map"] <= 1
    assert f"mean average precision {100 * results.metrics['map']:.1f} %" in report(config.out)


def test_one_folder_is_classified_by_leaving_each_image_out(config: KnnConfig, run: Run) -> None:
    results = read_results(evaluate(replace(config, test=None, k=(1, 35))))
    assert results.protocol.endswith(" leave-one-out") and results.datasets.keys() == {"train"}
    seed_everything(0)
    backbone = replace_input(build_backbone("cifar/resnet20"), size=16)
    found = extract_features(backbone, read_labelled(config.train), run, workers=0)
    predicted = knn_classify(found.features, found.labels, None, (1,))[1]
    assert results.metrics["top1_k1"] == pytest.approx(float((predicted == found.labels).float().mean()))
    assert results.metrics["top1_k35"] == 0  # of 35 others 11 are of one's own class, 12 of each other
    with pytest.raises(ValueError, match="k = 36 does not fit 35 training images"):
        evaluate(replace(config, test=None, k=(36,), out=config.out.with_name("other")))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"limit": 0}, r"--limit is 0: it must be"), ({"vote": "weighted", "temperature": 0.0}, r"--temperature is 0\.0")],
)
def test_settings_that_cannot_work_are_one_sentence(config: KnnConfig, changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate(replace(config, **changes))
    assert not config.out.exists()


def test_colours_are_told_apart_by_a_random_net(config: KnnConfig) -> None:
    metrics = read_results(evaluate(config)).metrics
    assert all(value > 0.9 for value in metrics.values()), metrics  # chance is 1/3


def test_accuracies_are_those_of_scikit_learn_on_the_same_features(labelled: Make, tmp_path: Path, run: Run) -> None:
    classes = ("blue", "green", "red")
    train, test = labelled("train", per_class=10, classes=classes), labelled("test", per_class=8, seed=1)
    for path in sorted(train.glob("*/*"))[::3]:  # a third of the images into a wrong class, so that 1-NN errs
        path.rename(path.with_name("x" + path.name))
        wrong = classes[(classes.index(path.parent.name) + 1) % 3]
        path.with_name("x" + path.name).rename(train / wrong / f"{path.parent.name}-{path.name}")
    results = read_results(evaluate(small_config(train, test, tmp_path / "run", k=(1,))))
    seed_everything(0)
    backbone = replace_input(build_backbone("cifar/resnet20"), size=16)
    sets = [extract_features(backbone, read_labelled(folder), run, workers=0) for folder in (train, test)]
    theirs = KNeighborsClassifier(n_neighbors=1, metric="cosine", algorithm="brute")
    theirs.fit(sets[0].features.numpy(), sets[0].labels.numpy())
    expected = theirs.score(sets[1].features.numpy(), sets[1].labels.numpy())
    assert 0.2 < expected < 0.95
    assert results.metrics["top1_k1"] == pytest.approx(expected)


def test_the_report_is_a_table_and_ends_with_the_directory_and_one_number(config: KnnConfig) -> None:
    out = evaluate(config)
    file = out / "results.json"
    raw = json.loads(file.read_text())
    top1, others = {"top1_k1": 0.5, "top1_k5": 0.754}, {"top5_k1": 0.5, "top5_k5": 0.9, "mrr_k1": 0.5, "mrr_k5": 0.6}
    raw["metrics"] = top1 | others
    file.write_text(json.dumps(raw))
    lines = report(out).splitlines()
    assert lines[0] == raw["protocol"]
    cells = [line.replace(" ", "").strip("|").split("|") for line in lines[1:-1]]
    assert cells[0] == ["k", "k-NNtop-1,%", "k-NNtop-5,%", "meanreciprocalrank,%"]
    assert cells[2:] == [["1", "50.0", "50.0", "50.0"], ["5", "75.4", "90.0", "60.0"]]
    assert lines[-1] == f"{out}: 75.4 % top-1 at k = 5"


def test_without_k_the_standard_ones_that_fit_are_used(config: KnnConfig) -> None:
    results = read_results(evaluate(replace(config, k=None)))
    assert [name for name in results.metrics if name.startswith("top1")] == [f"top1_k{k}" for k in (1, 5, 10, 20)]
    assert report(config.out).splitlines()[-1].endswith("% top-1 at k = 20")


def test_names_of_classes_are_drawn_as_they_are(labelled: Make, tmp_path: Path) -> None:
    train = labelled("train", per_class=4, classes=("_a$x_$b", "c"))
    out = evaluate(small_config(train, train, tmp_path / "run", k=(1,), figures=True))
    assert len(list((out / "figures").iterdir())) == 3
