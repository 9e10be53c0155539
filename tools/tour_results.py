"""What the tour measured: one results.json from those of its runs, and the table that README and the page show."""

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lanes import Lanes, Step
from report import Table
from stillroom.backbone import Results, read_results, write_results
from stillroom.backbone.configs import config_to_dict
from stillroom.backbone.manifest import Manifest, read_manifest
from stillroom.backbone.provenance import made_by
from stillroom.backbone.results import RESULTS, CheckpointRecord
from stillroom.backbone.run_files import read_metrics

PROTOCOL = "quickstart/v2"
TASKS = ("shapes", "textures")
NEIGHBOURS = 10
GROUND = "background"
AGREEMENT = "neighbours"
"""The measure without labels, by the name of its step."""
AGREEMENT_METRIC = "neighbour_agreement"
"""The same in a distillation's metrics."""
ROLES = {
    "random": "{student}, random weights",
    "supervised": "{student}, supervised",
    "student": "{student}, distilled without labels",
    "teacher": "{teacher}, the teacher",
}
"""Role -> how tables call the net."""


def knn_accuracy(run: Results) -> float:
    """Top-1 of k-NN."""
    return run.metrics[f"top1_k{NEIGHBOURS}"]


def mean_object_iou(run: Results) -> float:
    """Mean IoU over the classes of objects: the ground, which random weights find too, does not count."""
    found = [value for name, value in run.extra["iou_per_class"].items() if name != GROUND]
    return sum(found) / len(found)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number of a run in `<measure>-<role>`: its column in tables, and where it is read."""

    column: str
    read: Callable[[Results], float]


MEASURES = {
    "knn-shapes": Measure(column="k-NN, new shapes, %", read=knn_accuracy),
    "knn-textures": Measure(column="k-NN, new textures, %", read=knn_accuracy),
    "segmentation": Measure(column="segmentation, mIoU of objects, %", read=mean_object_iou),
    "detection": Measure(column="detection, AP, %", read=lambda run: run.metrics["AP"]),
    "knn": Measure(column="k-NN, %", read=knn_accuracy),
    "linear": Measure(column="linear probe, %", read=lambda run: run.metrics["top1"]),
}
COLUMNS = {name: measure.column for name, measure in MEASURES.items()} | {
    AGREEMENT: f"agreement of the {NEIGHBOURS} nearest neighbours, %"
}


def summary(step: Step) -> str:
    """The number that matters, for the line of a step that is done."""
    name, _, _ = step.name.rpartition("-")
    if name in MEASURES:
        return f"{COLUMNS[name]} {100 * MEASURES[name].read(read_results(step.out)):.1f}"
    if step.name in ("student", "supervised"):
        losses = [row["loss"] for row in read_metrics(step.out) if "loss" in row]
        return f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return str(step.out)


def read_measures(out: Path, roles: Mapping[str, str]) -> dict[str, float]:
    """Every number that the tour's runs have left: `role/measure` -> fraction."""
    found = {
        f"{role}/{name}": measure.read(read_results(run))
        for role in roles
        for name, measure in MEASURES.items()
        if (run := out / f"{name}-{role}" / RESULTS).exists()
    }
    if (compared := out / AGREEMENT / "agreement.json").exists():
        agreement = json.loads(compared.read_text(encoding="utf-8"))["agreement"]
        runs = {role: str(out / f"features-{role}") for role in roles}
        found |= {f"{role}/{AGREEMENT}": agreement[run] for role, run in runs.items() if run in agreement}
    return found


def write_tour_results(tour: Any, nets: Mapping[str, str], lanes: Lanes, seconds: float) -> Results:
    """Write what the tour measured as results.json into its folder.

    Args:
        tour: its settings, a dataclass.
        nets: role -> checkpoint directory or name.
        lanes: that ran its steps.
        seconds: from the first step to the last.
    """
    student = checkpoint_manifest(nets["student"])
    costs = json.loads((tour.out / "cost.json").read_text(encoding="utf-8"))
    results = Results(
        task="quickstart",
        protocol=PROTOCOL,
        datasets={},
        checkpoint=CheckpointRecord(path=nets["student"], sha256=student.weights.sha256, method=student.method),
        metrics=read_measures(tour.out, nets),
        seed=tour.seed,
        seconds=round(seconds, 1),
        made_by=made_by("stillroom-distill", config_to_dict(tour)),
        extra={
            "nets": {role: net_name(nets[role]) for role in ("student", "teacher")},
            "cost": dict(zip(("teacher", "student"), costs, strict=True)),
            "steps": {step.title: lanes.seconds_of(step) for step in lanes.steps},
            "kept": lanes.kept,
            "commands": {step.name: step.command for step in lanes.steps},
            "machine": machine(),
        },
    )
    write_results(tour.out, results)
    return results


def checkpoint_manifest(path: str) -> Manifest:
    """The manifest of a checkpoint directory."""
    return read_manifest(Path(path) / "manifest.json")


def net_name(net: str) -> str:
    """The name of a net, or of a checkpoint's net, without its library."""
    return (checkpoint_manifest(net).backbone.name if Path(net).is_dir() else net).rpartition("/")[2]


def machine() -> str:
    """The cores and the processor of this machine."""
    info = Path("/proc/cpuinfo")  # of Linux; platform knows the architecture alone there
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {models[0] if models else platform.processor() or platform.machine()}"


def table_of(results: Results) -> Table:
    """The table of the tour: a row for each net, a column for each measure, and what the net costs."""
    shown = [name for name in COLUMNS if any(key.endswith(f"/{name}") for key in results.metrics)]
    rows = []
    for role, title in ROLES.items():
        numbers = [results.metrics.get(f"{role}/{name}") for name in shown]
        if numbers == [None] * len(shown) and role != "teacher":
            continue
        cost = results.extra["cost"]["teacher" if role == "teacher" else "student"]
        cells = ["-" if number is None else f"{100 * number:.1f}" for number in numbers]
        weights, macs = f"{cost['parameters'] / 1e6:.2f}", f"{cost['macs'] / 1e9:.3f}"
        rows.append((title.format(**results.extra["nets"]), *cells, weights, macs, f"{cost['milliseconds']:.1f}"))
    header = ("net", *(COLUMNS[name] for name in shown), "weights, million", "GMACs", "ms")
    caption = f"Seed {results.seed}; times on {results.extra['machine']}"
    return Table(caption=caption, header=header, rows=tuple(rows))
