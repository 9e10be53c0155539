"""Names that earlier versions wrote into saved files, and what they are called today."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

BEFORE = "stillroom.det_transfer.with_detectron2."
"""Package of these names before version 0.2."""
TODAY = "stillroom.det_transfer.backends.detectron2."
RENAMED = {
    "find.Collector": "predict.Collector",
    "hooks.Rate": "hooks.LearningRateSchedule",
    "images.SteadyLoader": "images.SeededLoader",
}
"""Names that have changed themselves, as `module.name` within the package."""
ARGUMENTS = {f"{TODAY}nets.StillroomBackbone": {"hold": "freeze"}}
"""Arguments that have changed, by the import path of today."""
HOOKS = {"SteadySteps": "SeededSteps"}
"""Hooks whose state is saved under their class name."""


def import_path(path: str) -> str:
    """Today's import path of a name that a saved file holds; one that has not moved is returned unchanged."""
    if not path.startswith(BEFORE):
        return path
    name = path.removeprefix(BEFORE)
    return TODAY + RENAMED.get(name, name)


def update_config(node: Any) -> None:
    """Replace import paths and arguments throughout a LazyConfig, in place.

    Args:
        node: a mapping, a list, or a value in them.
    """
    if isinstance(node, MutableMapping) and len(node):  # OmegaConf's mappings of None cannot be read
        target, path = node.get("_target_"), ""
        if isinstance(target, str):
            node["_target_"] = path = import_path(target)
        elif isinstance(target, type):  # in a pickled config
            path = f"{target.__module__}.{target.__qualname__}"
        for old, new in ARGUMENTS.get(path, {}).items():
            if old in node:
                node[new] = node.pop(old)
        for child in node.values():
            update_config(child)
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes) and len(node):
        for child in node:
            update_config(child)


def update_state(state: MutableMapping[str, Any]) -> None:
    """Replace the names of hooks in the state of Detectron2's trainer, in place."""
    hooks: Mapping[str, Any] = state.get("hooks", {})
    if hooks:
        state["hooks"] = {HOOKS.get(name, name): value for name, value in hooks.items()}
