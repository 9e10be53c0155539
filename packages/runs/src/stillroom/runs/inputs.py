"""inputs.json: the hashes of everything that a run began with, and where it lies. Imports no torch.

Policy: names, sizes and labels of all images, the contents of at most 1,000 of them (see `Source.content` in
stillroom-images); nets by the hash of their weights; other files by their content. A run is not resumed with inputs of
other hashes.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from stillroom.backbone.atomic import write_file
from stillroom.backbone.manifest import MANIFEST, read_manifest
from stillroom.backbone.names import is_checkpoint
from stillroom.backbone.spec import BackboneSpec
from stillroom.runs.results import DatasetRecord
from stillroom.runs.run_files import INPUTS, read_inputs


class Input(NamedTuple):
    """One input of a run: what an error calls it, and its hash."""

    words: str
    sha256: str


def data_inputs(records: Mapping[str, DatasetRecord]) -> dict[str, Input]:
    """The inputs that data are, by role: names and sizes, and a sample of the contents."""
    inputs = {role: Input(f"the data in {one.path}", one.fingerprint) for role, one in records.items()}
    contents = {f"{role} content": Input(f"the data in {one.path}", one.content) for role, one in records.items()}
    return inputs | {name: one for name, one in contents.items() if one.sha256}


def names_input(names: Iterable[str]) -> Input:
    """The input that the classes are: their names, in the order of the labels."""
    return Input("the classes", sha256(json.dumps(list(names)).encode()).hexdigest())


def checkpoint_inputs(name: str, role: str) -> dict[str, Input]:
    """The inputs that a checkpoint directory is, by its manifest; empty for the name of a net, or a missing one."""
    if not is_checkpoint(name):
        return {}
    manifest = read_manifest(Path(name) / MANIFEST)
    weights = Input(f"the weights of {name}", manifest.weights.sha256)
    return {role: weights, f"{role} input": settings_input(manifest.backbone, name)}


def settings_input(spec: BackboneSpec, name: str) -> Input:
    """The input that a net's settings are: how images are preprocessed for it, and its constructor's arguments."""
    given = json.dumps([asdict(spec.input), spec.arguments])
    return Input(f"the input settings of {name}", sha256(given.encode()).hexdigest())


def record_inputs(out: Path, inputs: Mapping[str, Input]) -> None:
    """Write inputs.json into a new run directory."""
    hashes = {name: one.sha256 for name, one in inputs.items()}
    _write(out, {"working_directory": str(Path.cwd()), "sha256": hashes, "moved": {}})


def refuse_changed_inputs(out: Path, inputs: Mapping[str, Input], began: Mapping[str, str] | None = None) -> None:
    """Refuse to keep or resume a run with other inputs than it began with; print which have no hash to compare.

    Args:
        out: the run directory.
        inputs: as they are now.
        began: the hashes that it began with; None: those of its inputs.json.

    Raises:
        ValueError: inputs have changed, with the name of each.
    """
    began = read_inputs(out).get("sha256", {}) if began is None else began
    changed = dict.fromkeys(one.words for name, one in inputs.items() if began.get(name, one.sha256) != one.sha256)
    if changed:
        raise ValueError(
            f"{', '.join(changed)} have changed since {out} began: choose another --out to begin anew, restore what "
            f"was there, or pass `resume` the place where it lies now"
        )
    unknown = [name for name in inputs if name not in began]
    if unknown and os.environ.get("RANK", "0") == "0":
        print(f"note: {out} has no hash of {', '.join(unknown)}: whether they changed is unknown", file=sys.stderr)


def record_moved(out: Path, places: Mapping[str, Any]) -> None:
    """Keep in inputs.json where a run's inputs lie now, by field of its config; nothing for no places."""
    if places:
        content = read_inputs(out) or {"working_directory": str(Path.cwd()), "sha256": {}, "moved": {}}
        _write(out, {**content, "moved": {**content["moved"], **places}})


def _write(out: Path, content: Mapping[str, Any]) -> None:
    write_file(out / INPUTS, json.dumps(content, indent=2) + "\n")
