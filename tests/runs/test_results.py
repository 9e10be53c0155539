"""results.json and the tables made of it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.backbone.manifest import MadeBy
from stillroom.runs import Results, format_table, read_results, write_results
from stillroom.runs.results import CheckpointRecord, DatasetRecord, percent

RESULTS = Results(
    task="knn",
    protocol="knn/v1 k=20 feature=before size=48",
    datasets={"train": DatasetRecord(path="/d/train", count=9, fingerprint="f" * 64, broken=1)},
    checkpoint=CheckpointRecord(path="runs/a/student", sha256="a" * 64, method="kdep"),
    metrics={"top1": 0.8125, "loss": 1.5},
    seed=3,
    seconds=1.25,
    made_by=MadeBy(package="stillroom-eval-ssl", version="0.1.0", commit=None, command="x", torch="2.6.0", date="now"),
    extra={"k": [1, 5]},
)


def test_results_are_read_back_from_the_file_and_from_the_directory(tmp_path: Path) -> None:
    write_results(tmp_path / "run", RESULTS)
    assert read_results(tmp_path / "run") == RESULTS
    assert read_results(str(tmp_path / "run" / "results.json")) == RESULTS
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["results.json"]


def test_the_layout_is_that_of_the_design(tmp_path: Path) -> None:
    write_results(tmp_path, RESULTS)
    raw = json.loads((tmp_path / "results.json").read_text())
    assert raw.keys() >= {"schema", "task", "protocol", "checkpoint", "metrics", "seed", "seconds", "made_by"}
    assert raw["schema"] == 1
    assert raw["checkpoint"] == {"path": "runs/a/student", "sha256": "a" * 64, "method": "kdep"}
    assert raw["metrics"] == {"top1": 0.8125, "loss": 1.5}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"schema": null}'])
def test_a_damaged_file_is_no_results_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is not a results file"):
        read_results(tmp_path)


def test_a_missing_file_is_no_results_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"results\.json is not a results file: .*No such file"):
        read_results(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    write_results(tmp_path, replace(RESULTS, schema=2))
    with pytest.raises(ValueError, match=r"results\.json has schema 2, this version reads up to 1: upgrade it"):
        read_results(tmp_path)


@pytest.mark.parametrize("field", ["task", "protocol", "checkpoint", "metrics", "seed", "seconds", "made_by"])
def test_a_file_that_lacks_a_field_is_refused(tmp_path: Path, field: str) -> None:
    write_results(tmp_path, RESULTS)
    file = tmp_path / "results.json"
    raw = json.loads(file.read_text())
    del raw[field]
    file.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"results\.json does not fit schema 1 of results"):
        read_results(file)


def test_a_table_has_aligned_columns() -> None:
    table = format_table(["net", "top-1"], [["resnet18", "81.2"], ["a", "7.0"]])
    assert table.splitlines() == [
        "| net      | top-1 |",
        "| -------- | ----- |",
        "| resnet18 | 81.2  |",
        "| a        | 7.0   |",
    ]


def test_a_table_may_have_no_rows() -> None:
    assert format_table(["a"], []) == "| a |\n| - |"


def test_fractions_are_shown_in_percent() -> None:
    assert percent({"top1": 0.8125}, "top1") == "81.2"
    assert percent({"top1": 1.0}, "top1") == "100.0"


def test_nan_is_null_with_a_reason_and_is_read_back_as_nan(tmp_path: Path) -> None:
    reasons = {"metrics.loss": "0 of 0"}
    metrics = {"top1": 0.5, "loss": math.nan, "other": -math.inf}
    extra = {"std": None, "rows": [1.0, math.nan]}
    write_results(tmp_path, replace(RESULTS, metrics=metrics, extra=extra, not_finite=reasons))
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"] == {"top1": 0.5, "loss": None, "other": None}
    assert content["not_finite"] == {"metrics.loss": "0 of 0", "metrics.other": "-Infinity", "extra.rows.1": "NaN"}
    results = read_results(tmp_path)
    assert math.isnan(results.metrics["loss"]) and percent(results.metrics, "loss") == "nan"
    assert results.extra["std"] is None and math.isnan(results.extra["rows"][1])
