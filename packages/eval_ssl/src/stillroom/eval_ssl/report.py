"""What a run prints: its protocol, a table, and last the directory with the one number that matters."""

import json
from collections.abc import Callable
from pathlib import Path

from stillroom.backbone import Results, format_table
from stillroom.backbone.results import percent, read_results
from stillroom.eval_ssl.evaluation import TABLE
from stillroom.eval_ssl.measure import curve_of, headline


def report(path: Path) -> str:
    """The text of a run directory, of one checkpoint or of several."""
    if (path / TABLE).exists():
        return report_several(path)
    results = read_results(path)
    reports: dict[str, Callable[[Path, Results], str]] = {
        "knn": report_knn,
        "linear": report_classifier,
        "logreg": report_classifier,
        "few-shot": report_few_shot,
        "features": report_features,
    }
    return f"{results.protocol}\n{reports[results.task](path, results)}"


def report_several(path: Path) -> str:
    """One row for each checkpoint; its protocol above where they differ."""
    rows = json.loads((path / TABLE).read_text(encoding="utf-8"))["rows"]
    protocols = {row["protocol"] for row in rows.values()}
    above = [*protocols] if len(protocols) == 1 else [f"{name}: {row['protocol']}" for name, row in rows.items()]
    names = [name for name in next(iter(rows.values()))["metrics"] if not name.startswith(("top5_", "mrr_"))]
    header = ["checkpoint", *(f"{name} %" for name in names)]
    cells = [[name, *(percent(row["metrics"], each) for each in names)] for name, row in rows.items()]
    if not names:
        return "\n".join([*above, *(str(path / row["run"]) for row in rows.values())])
    runs = {name: read_results(path / row["run"]) for name, row in rows.items()}
    above += [f"{name} did not converge" for name, run in runs.items() if not run.extra.get("converged", True)]
    best = max(rows, key=lambda name: rows[name]["metrics"][headline_metric(names)])
    top = percent(rows[best]["metrics"], headline_metric(names))
    return "\n".join([*above, format_table(header, cells), f"{path}: {best} is best, {top} % {headline_metric(names)}"])


def headline_metric(names: list[str]) -> str:
    """The metric that stands for a run."""
    neighbours = tuple(int(name.removeprefix("top1_k")) for name in names if name.startswith("top1_k"))
    if neighbours:
        return f"top1_k{headline(neighbours)}"
    shots = [name for name in names if name.startswith("top1_s") and not name.endswith("_std")]
    return max(shots, key=lambda name: int(name.removeprefix("top1_s"))) if shots else "top1"


def report_knn(path: Path, results: Results) -> str:
    """All k."""
    neighbours = tuple(int(name.removeprefix("top1_k")) for name in results.metrics if name.startswith("top1_k"))
    rows = [
        [str(k), *(percent(results.metrics, f"{name}_k{k}") for name in ("top1", "top5", "mrr"))] for k in neighbours
    ]
    k = headline(neighbours)
    lines = [format_table(["k", "top-1 %", "top-5 %", "MRR %"], rows)]
    if "map" in results.metrics:
        lines.append(f"retrieval: mean average precision {percent(results.metrics, 'map')} %")
    return "\n".join([*lines, f"{path}: {percent(results.metrics, f'top1_k{k}')} % top-1 at k = {k}"])


def report_classifier(path: Path, results: Results) -> str:
    """What was chosen of which grid, and what it scores."""
    grid, chosen = results.extra["grid"], results.extra["chosen"]
    lines = []
    if grid:
        settings = [
            name for name in chosen if name in ("lr", "weight_decay", "penalty") or len({p[name] for p in grid}) > 1
        ]
        rows = [
            [*(f"{p[name]:g}" if isinstance(p[name], float) else str(p[name]) for name in settings),
             "diverged" if p["held_out_top1"] is None else f"{100 * p['held_out_top1']:.1f}"]
            for p in grid
        ]  # fmt: skip
        lines.append(format_table([*(name.replace("_", " ") for name in settings), "held-out top-1 %"], rows))
    lines.append("chosen: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in chosen.items()))
    if not results.extra.get("converged", True):
        worst = max(results.extra["fits"], key=lambda fit: fit["gradient"])
        lines.append(
            f"not converged: the largest gradient is {worst['gradient']:.1e} after {worst['iterations']} iterations"
        )
    last_line = f"{path}: {percent(results.metrics, 'top1')} % top-1, {percent(results.metrics, 'top5')} % top-5"
    return "\n".join([*lines, last_line])


def report_few_shot(path: Path, results: Results) -> str:
    """Mean and spread for each number of shots."""
    curve = curve_of(results.metrics)
    rows = [
        [str(shots), f"{mean:.1f}", f"{spread:.1f}" if f"top1_s{shots}_std" in results.metrics else "-"]
        for shots, (mean, spread) in curve.items()
    ]
    shots = max(curve)
    table = format_table(["images per class", "top-1 %", "std over draws"], rows)
    return f"{table}\n{path}: {curve[shots][0]:.1f} % top-1 with {shots} images per class"


def report_features(path: Path, results: Results) -> str:
    """The files and their shapes."""
    shapes = results.extra["files"]
    return "\n".join(f"{path / name}: {n} x {d} float32" for name, (n, d) in shapes.items())
