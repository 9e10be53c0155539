"""Several checkpoints in one table: table.json, what is printed of it, and what is printed of a single run."""

from pathlib import Path

from stillroom.backbone.atomic import write_file
from stillroom.eval_ssl.config import EvaluationConfig, MeasurementConfig
from stillroom.eval_ssl.protocols import PROTOCOLS
from stillroom.runs.results import format_table, percent, read_results
from stillroom.runs.run_files import from_json, to_json

TABLE = "table.json"


def write_comparison(config: EvaluationConfig, directories: list[Path]) -> None:
    """Write table.json, a row per checkpoint, and the figures that compare them."""
    runs = {name: (path, read_results(path)) for name, path in zip(config.checkpoint, directories, strict=True)}
    rows = {
        name: {"run": path.name, "protocol": results.protocol, "metrics": results.metrics}
        for name, (path, results) in runs.items()
    }
    write_file(config.out / TABLE, to_json({"task": config.task, "rows": rows}, indent=2) + "\n")
    if isinstance(config, MeasurementConfig) and config.figures:
        config.draw_comparison(config.out, {name: results.metrics for name, (_, results) in runs.items()})


def report(directory: Path) -> str:
    """What is printed of a run directory, of one checkpoint or of several: protocol, table, headline metric."""
    if (directory / TABLE).exists():
        return report_comparison(directory)
    results = read_results(directory)
    return f"{results.protocol}\n{PROTOCOLS[results.task].report(directory, results)}"


def report_comparison(directory: Path) -> str:
    """A row per checkpoint, their protocol above, or each one's where they differ; last the best checkpoint."""
    table = from_json((directory / TABLE).read_text(encoding="utf-8"))
    protocol, rows = PROTOCOLS[table["task"]], table["rows"]

    # The protocol ids.
    ids = {row["protocol"] for row in rows.values()}
    lines = [*ids] if len(ids) == 1 else [f"{name}: {row['protocol']}" for name, row in rows.items()]

    # Without metrics, the run directories; else their table.
    first = next(iter(rows.values()))["metrics"]
    columns = protocol.table_metrics(first)
    if not columns:
        return "\n".join([*lines, *(str(directory / row["run"]) for row in rows.values())])
    runs = {name: read_results(directory / row["run"]) for name, row in rows.items()}
    lines += [f"{name} did not converge" for name, run in runs.items() if not run.extra.get("converged", True)]
    header = ["checkpoint", *(f"{words}, %" for words in columns.values())]
    cells = [[name, *(percent(row["metrics"], metric) for metric in columns)] for name, row in rows.items()]
    lines.append(format_table(header, cells))

    # The best checkpoint.
    headline = protocol.headline(first)
    best = max(rows, key=lambda name: rows[name]["metrics"][headline])
    lines.append(f"{directory}: {best} is best, {percent(rows[best]['metrics'], headline)} % {columns[headline]}")
    return "\n".join(lines)
