"""Files of a run in Detectron2's formats, also those of earlier versions: its LazyConfig and its states."""

import io
import pickle
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig
from omegaconf import DictConfig

from stillroom.backbone.tensor_files import load_tensors
from stillroom.det_transfer.backends.detectron2.renames import import_path, update_config, update_state

CONFIG_YAML = "config.yaml"
"""Detectron2's LazyConfig of a run."""


class MovedUnpickler(pickle.Unpickler):
    """An unpickler that also finds our classes by the import paths of earlier versions.

    It runs what the pickle says, as Detectron2's own reader of .yaml does, which constructs tagged objects: only for a
    run whose program is trusted, see `refuse_untrusted`.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Import a class or function."""
        path = f"{module}.{name}"
        if (moved := import_path(path)) != path:
            module, _, name = moved.rpartition(".")
        return super().find_class(module, name)


class RunCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which loads nothing but tensors and numbers, and states of earlier versions too.

    Detectron2's own unpickles any file whose name in `last_checkpoint` ends in .pkl.
    """

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = load_state(Path(filename))
        if "trainer" in checkpoint:
            update_state(checkpoint["trainer"])
        return checkpoint


def load_state(file: Path) -> dict[str, Any]:
    """Load a state that Detectron2 saved: `model`, and what the trainer needs to resume.

    Raises:
        ValueError: no such file, or one that is damaged or holds more than tensors and numbers.
    """
    state = load_tensors(file, advice="copy the run again")
    if not isinstance(state, dict) or "model" not in state:
        raise ValueError(f"{file} is not a state of a run: it has no model")
    return state


def load_saved_config(out: Path) -> DictConfig:
    """Load the LazyConfig of a run directory, which executes what it says; see `refuse_untrusted`.

    LazyConfig.save pickles a config that YAML cannot hold, such as a user's with a lambda.
    """
    pickled = out / f"{CONFIG_YAML}.pkl"
    if not pickled.exists():
        return load_lazy_config(out / CONFIG_YAML)
    cfg = MovedUnpickler(io.BytesIO(pickled.read_bytes())).load()
    update_config(cfg)
    return cfg


def load_lazy_config(file: Path) -> Any:
    """Load a LazyConfig: a .py, or a .yaml that an earlier version may have saved; a .yaml may hold anything."""
    cfg = LazyConfig.load(str(file))
    if file.suffix != ".py":
        update_config(cfg)
    return cfg
