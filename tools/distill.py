"""Distil a student: `stillroom-distill`, with k-NN.

auto | kdep | simreg | ... | fit-alignment | import-alignment | resume
"""

from importlib.util import find_spec
from typing import Any

from stillroom.backbone.command import report_errors
from stillroom.distill.cli import run_command


def knn(*arguments: Any) -> dict[str, float]:
    """Call eval_ssl's k-NN monitor, which is passed in, as packages never import each other."""
    from stillroom.eval_ssl import monitor_knn  # noqa: PLC0415  # it imports torch

    return monitor_knn(*arguments)


@report_errors
def main() -> None:
    """Run distill's command, with the k-NN monitor of eval_ssl if that is installed."""
    run_command(None if find_spec("stillroom.eval_ssl") is None else knn)


if __name__ == "__main__":
    main()
