"""The tour's results: one results.json from those of its runs, and the table of README and the page."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.machine import cpu_name
from lanes import Lanes, Step
from neighbours import agreement_text
from report import Table
from stillroom.backbone.manifest import MANIFEST, Manifest, read_manifest
from stillroom.runs import Results, read_results, write_results
from stillroom.runs.configs import config_to_dict
from stillroom.runs.results import CheckpointRecord
from stillroom.runs.run_files import read_metrics
from tour import NEIGHBOURS, Tour, nets_of

PROTOCOL = "quickstart/v2"
TASKS = ("shapes", "textures")
AGREEMENT = "neighbours"
"""Name of the step that computes neighbour agreement, the metric without labels."""
AGREEMENT_METRIC = "neighbour_agreement"
"""The same metric in the results of a distillation."""
ROLES = {
    "random": "{student}, random weights",
    "supervised": "{student}, supervised",
    "student": "{student}, distilled without labels",
    "teacher": "{teacher}, the teacher",
}
"""Role -> name of the net in tables."""


def knn_accuracy(run: Results) -> float:
    """k-NN top-1, a fraction."""
    return run.metrics[f"top1_k{NEIGHBOURS}"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of the runs `<metric>-<role>`: its column in tables, and how it is read from results."""

    column: str
    read: Callable[[Results], float]


METRICS = {
    "knn-shapes": Metric(column="k-NN, new shapes, %", read=knn_accuracy),
    "knn-textures": Metric(column="k-NN, new textures, %", read=knn_accuracy),
    "segmentation": Metric(column="segmentation, mIoU of objects, %", read=lambda run: run.metrics["mIoU_foreground"]),
    "detection": Metric(column="detection, AP, %", read=lambda run: run.metrics["AP"]),
    "knn": Metric(column="k-NN, %", read=knn_accuracy),
    "linear": Metric(column="linear probe, %", read=lambda run: run.metrics["top1"]),
}
COLUMNS = {name: metric.column for name, metric in METRICS.items()} | {
    AGREEMENT: f"agreement of the {NEIGHBOURS} nearest neighbours, %"
}


def summary(step: Step) -> str:
    """A step's main number, for its line on the screen."""
    name, _, _ = step.name.rpartition("-")
    if name in METRICS:
        return f"{COLUMNS[name]} {100 * METRICS[name].read(read_results(step.out)):.1f}"
    if step.name == AGREEMENT:
        return f"{COLUMNS[AGREEMENT]} {agreement_text(read_agreement(step.out.parent)['student'])}"
    if step.name in ("student", "supervised"):
        losses = [row["loss"] for row in read_metrics(step.out) if "loss" in row]
        return f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return str(step.out)


def collect_metrics(steps: list[Step]) -> dict[str, float]:
    """Every number of the tour's runs: `role/metric` -> fraction."""
    metrics = {}
    for step in steps:
        name, _, role = step.name.rpartition("-")
        if name in METRICS:
            metrics[f"{role}/{name}"] = METRICS[name].read(read_results(step.out))
        if step.name == AGREEMENT:
            metrics |= {f"{role}/{AGREEMENT}": value for role, value in read_agreement(step.out.parent).items()}
    return metrics


def read_agreement(out: Path) -> dict[str, float]:
    """Neighbour agreement of student and random weights with the teacher: role -> fraction."""
    agreement = json.loads((out / AGREEMENT / "agreement.json").read_text(encoding="utf-8"))["agreement"]
    return {role: agreement[str(out / f"features-{role}")] for role in ("student", "random")}


def write_tour_results(tour: Tour, lanes: Lanes, seconds: float) -> Results:
    """Write the tour's results.json into its folder.

    Args:
        tour: its settings.
        lanes: the lanes that ran its steps.
        seconds: duration from the first step to the last.
    """
    from stillroom.backbone.provenance import made_by  # noqa: PLC0415  # it imports torch

    nets = nets_of(tour)
    student = checkpoint_manifest(nets["student"])
    costs = json.loads((tour.out / "cost.json").read_text(encoding="utf-8"))
    results = Results(
        task="quickstart",
        protocol=PROTOCOL,
        datasets={},
        checkpoint=CheckpointRecord(path=nets["student"], sha256=student.weights.sha256, method=student.method),
        metrics=collect_metrics(lanes.steps),
        seed=tour.seed,
        seconds=round(seconds, 1),
        made_by=made_by("stillroom-distill", config_to_dict(tour)),
        extra={
            "nets": {role: net_name(nets[role]) for role in ("student", "teacher")},
            "cost": dict(zip(("teacher", "student"), costs, strict=True)),
            "steps": {step.title: lanes.seconds_of(step) for step in lanes.steps},
            "resumed": lanes.resumed,
            "commands": {step.name: step.command for step in lanes.steps},
            "machine": f"{os.cpu_count()} cores, {cpu_name()}",
        },
    )
    write_results(tour.out, results)
    return results


def checkpoint_manifest(path: str) -> Manifest:
    """The manifest of a checkpoint directory."""
    return read_manifest(Path(path) / MANIFEST)


def net_name(net: str) -> str:
    """The name of a net, or of the net of a checkpoint, without its library."""
    return (checkpoint_manifest(net).backbone.name if Path(net).is_dir() else net).rpartition("/")[2]


def cell(metric: str, number: float | None) -> str:
    """A metric in a table: percent, or a hyphen."""
    if number is None:
        return "-"
    return agreement_text(number) if metric == AGREEMENT else f"{100 * number:.1f}"


def table_of(results: Results) -> Table:
    """The table of the tour: a row per net, a column per metric, and the net's cost."""
    columns = [name for name in COLUMNS if any(key.endswith(f"/{name}") for key in results.metrics)]
    rows = []
    for role, title in ROLES.items():
        numbers = {name: results.metrics.get(f"{role}/{name}") for name in columns}
        if set(numbers.values()) == {None} and role != "teacher":
            continue
        cost = results.extra["cost"]["teacher" if role == "teacher" else "student"]
        cells = [cell(name, number) for name, number in numbers.items()]
        parameters, macs = f"{cost['parameters'] / 1e6:.2f}", f"{cost['macs'] / 1e9:.3f}"
        rows.append((title.format(**results.extra["nets"]), *cells, parameters, macs, f"{cost['milliseconds']:.1f}"))
    header = ("net", *(COLUMNS[name] for name in columns), "parameters, million", "GMACs", "ms")
    caption = f"Seed {results.seed}; milliseconds on one thread of {results.extra['machine']}"
    return Table(caption=caption, header=header, rows=tuple(rows))
