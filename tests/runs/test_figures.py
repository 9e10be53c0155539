"""Pictures, looked at by their pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.runs.figures import draw_confusion


@pytest.mark.parametrize("num_classes", [3, 41])
def test_confusions_are_drawn_for_few_and_for_many_classes(tmp_path: Path, num_classes: int) -> None:
    truth = torch.arange(num_classes).repeat(4)
    names = [f"class-{i}" for i in range(num_classes)]
    for name, predicted in (("right", truth), ("wrong", (truth + 1) % num_classes)):
        draw_confusion(tmp_path / f"{name}.png", truth, predicted, names, "a title")
    assert (tmp_path / "hardest.png").exists() == (num_classes > 40)
    right, wrong = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("right", "wrong"))
    assert min(right.shape[:2]) > 200 and right.std() > 10
    assert right.shape != wrong.shape or not np.array_equal(right, wrong)
