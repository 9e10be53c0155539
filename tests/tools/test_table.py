"""Headers of the table of results."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from table import metric_title


@pytest.mark.parametrize(
    ("metric", "title"),
    [("top1_k20", "k-NN top-1, k = 20"), ("top5_k5", "k-NN top-5, k = 5"), ("top1", "top-1"), ("mIoU", "mIoU")],
)
def test_a_header_names_the_metric_in_words(metric: str, title: str) -> None:
    assert metric_title(metric) == title
