"""Names that version 0.1.3 saved are found under those of today; Detectron2 is not needed."""

import ast
import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillroom.det_transfer.backends.detectron2.renames import BEFORE, TODAY, import_path, update_config, update_state

STORED = Path(__file__).parent / "fixtures" / "config-0.1.3.yaml"
"""The config.yaml of a run of version 0.1.3; RUN stands for its directory."""


def targets(node: Any) -> list[str]:
    """Every import path in a config."""
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [path for child in node.values() for path in targets(child)]
    return [path for child in node for path in targets(child)] if isinstance(node, list) else []


def defined(path: str) -> bool:
    """Whether a module of ours defines a name, by its source: importing it would need Detectron2."""
    module, _, name = path.rpartition(".")
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return any(getattr(node, "name", None) == name for node in ast.parse(Path(spec.origin).read_text()).body)


def test_every_import_path_of_a_stored_config_is_found_today() -> None:
    cfg = yaml.safe_load(STORED.read_text())
    before = targets(cfg)
    assert sum(path.startswith(BEFORE) for path in before) >= 6
    update_config(cfg)
    after = targets(cfg)
    assert len(after) == len(before) and not any(path.startswith(BEFORE) for path in after)
    assert all(defined(path) for path in after if path.startswith("stillroom."))
    others = [path for path in before if not path.startswith("stillroom.")]
    assert [path for path in after if not path.startswith("stillroom.")] == others


def test_an_argument_that_was_renamed_keeps_its_value() -> None:
    cfg = yaml.safe_load(STORED.read_text())
    before = cfg["model"]["backbone"]["bottom_up"].copy()
    assert before.pop("hold") == "norms"
    update_config(cfg)
    expected = {**before, "_target_": f"{TODAY}nets.StillroomBackbone", "freeze": "norms"}
    assert cfg["model"]["backbone"]["bottom_up"] == expected


def test_a_config_of_today_stays_as_it_is() -> None:
    cfg = yaml.safe_load(STORED.read_text())
    update_config(cfg)
    again = copy.deepcopy(cfg)
    update_config(again)
    assert again == cfg


@pytest.mark.parametrize(
    ("path", "today"),
    [
        (f"{BEFORE}find.Collector", f"{TODAY}predict.Collector"),
        (f"{BEFORE}hooks.Rate", f"{TODAY}hooks.LearningRateSchedule"),
        (f"{BEFORE}images.SteadyLoader", f"{TODAY}images.SeededLoader"),
        (f"{BEFORE}nets.ExtraNorm", f"{TODAY}nets.ExtraNorm"),
        ("detectron2.modeling.backbone.FPN", "detectron2.modeling.backbone.FPN"),
    ],
)
def test_import_paths_are_those_of_today(path: str, today: str) -> None:
    assert import_path(path) == today


def test_the_state_of_a_hook_is_kept_under_its_name_of_today() -> None:
    state: dict[str, Any] = {"iteration": 3, "hooks": {"SteadySteps": {"seconds": 7.0}, "LRScheduler": {}}}
    update_state(state)
    assert state == {"iteration": 3, "hooks": {"SeededSteps": {"seconds": 7.0}, "LRScheduler": {}}}
