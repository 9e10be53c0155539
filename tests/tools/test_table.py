"""Headers of the table of results."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import table
from stillroom.backbone.provenance import made_by
from stillroom.runs import Results
from stillroom.runs.results import CheckpointRecord, DatasetRecord, write_results
from table import metric_title


@pytest.mark.parametrize(
    ("metric", "title"),
    [("top1_k20", "k-NN top-1, k = 20"), ("top5_k5", "k-NN top-5, k = 5"), ("top1", "top-1"), ("mIoU", "mIoU")],
)
def test_a_header_names_the_metric_in_words(metric: str, title: str) -> None:
    assert metric_title(metric) == title


def test_a_row_that_the_table_cannot_show_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(
        task="distill",
        protocol="kdep/v1",
        datasets={"train": DatasetRecord(path="a", count=1, fingerprint="")},
        checkpoint=CheckpointRecord(path="", sha256="", method=""),
        metrics={},
        seed=0,
        seconds=0.0,
        made_by=made_by("stillroom-distill"),
    )
    write_results(tmp_path, results)
    for words, sentence in (
        ([f"a={tmp_path}"], f"error: {tmp_path} was not measured on test images: it has no column in this table"),
        ([f"a={tmp_path}/absent"], "error: "),
        (["a"], "error: 'a' is not LABEL=RUN,RUN,..."),
        ([], "error: there are no rows: pass LABEL=RUN,RUN,..."),
    ):
        monkeypatch.setattr(sys, "argv", ["table.py", *words])
        with pytest.raises(SystemExit) as left:
            table.main()
        assert left.value.code == 2 and capsys.readouterr().err.startswith(sentence)
