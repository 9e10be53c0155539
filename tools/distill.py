"""Make a student: kdep | simreg | ... | fit-alignment | import-alignment | resume: `stillroom-distill` with k-NN."""

from importlib.util import find_spec
from typing import Any

from stillroom.backbone.command import report_errors
from stillroom.distill.cli import run_command


def knn(*given: Any) -> dict[str, float]:
    """Measure by eval_ssl's monitor, which is imported when a run does so: packages never import each other."""
    from stillroom.eval_ssl import monitor_knn  # noqa: PLC0415  # it imports torch

    return monitor_knn(*given)


@report_errors
def main() -> None:
    """Hand the k-NN monitor of eval_ssl to distill, where both are installed."""
    run_command(None if find_spec("stillroom.eval_ssl") is None else knn)


if __name__ == "__main__":
    main()
