"""Inputs, licences, levels as data."""

import pytest

from stillroom.backbone import InputSpec, Level, Licence
from stillroom.backbone.spec import inherit_licence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 0}, "input size is 0 px: it must be at least 1"),
        ({"crop_fraction": 0.0}, r"crop fraction is 0\.0: it must lie in \(0, 1\]"),
        ({"crop_fraction": 1.01}, r"crop fraction is 1\.01: it must lie in \(0, 1\]"),
        ({"std": (0.2, 0.0, 0.2)}, r"input std is \(0\.2, 0\.0, 0\.2\): every channel must be above 0"),
        ({"mean": (float("nan"), 0.0, 0.0)}, r"input mean \(nan, 0\.0, 0\.0\), .*: all must be finite"),
        ({"value_range": (1.0, 0.0)}, r"input values are \(1\.0, 0\.0\): black must be below white"),
    ],
)
def test_an_impossible_input_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        InputSpec(**change)


def test_a_crop_of_the_whole_image_is_possible() -> None:
    assert InputSpec(crop_fraction=1.0, size=1).crop_fraction == 1.0


def test_an_input_reads_as_everything_that_is_done_to_an_image() -> None:
    assert str(InputSpec()) == (
        "224 px, rgb, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225), values 0 to 1, "
        "crop fraction 0.875 of the short side at 256 px, bilinear, antialiased"
    )


def test_a_level_reads_as_name_channels_and_stride() -> None:
    assert str(Level(name="layer4", channels=512, stride=32)) == "layer4 512c/32"


@pytest.mark.parametrize(
    ("licence", "permissive"),
    [
        (Licence(spdx="Apache-2.0"), True),
        (Licence(spdx="BSD-3-Clause"), True),
        (Licence(spdx="Apache-2.0", restrictions=("data: research only",)), False),
        (Licence(spdx="CC-BY-NC-4.0"), False),
        (Licence(spdx="GPL-3.0-only"), False),
        (Licence(), False),
    ],
)
def test_permissive_means_a_permissive_licence_and_nothing_inherited(licence: Licence, permissive: bool) -> None:
    assert licence.permissive is permissive


def test_a_student_inherits_from_teacher_and_data() -> None:
    teacher = Licence(spdx="CC-BY-NC-4.0", restrictions=("weights: x",))
    assert inherit_licence(teacher, None) == teacher
    assert inherit_licence(teacher, "MIT") == teacher
    both = Licence(spdx="CC-BY-NC-4.0", restrictions=("weights: x", "data: ImageNet terms"))
    assert inherit_licence(teacher, "ImageNet terms") == both
    assert inherit_licence(both, "ImageNet terms") == both  # said once
    assert inherit_licence(None, "ImageNet terms") == Licence(restrictions=("data: ImageNet terms",))
    assert inherit_licence(None, None) == Licence()
