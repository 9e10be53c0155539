"""Make a student: kdep | simreg | ... | fit-alignment | import-alignment | resume: `stillroom-distill` with k-NN."""

from importlib.util import find_spec

from stillroom.backbone.command import plainly
from stillroom.distill.cli import run_command


@plainly
def main() -> None:
    """Hand the k-NN monitor of eval_ssl to distill, where both are installed: packages never import each other."""
    if find_spec("stillroom.eval_ssl") is None:
        run_command(None)
    else:
        from stillroom.eval_ssl import monitor_knn  # noqa: PLC0415  # only where it is installed

        run_command(monitor_knn)


if __name__ == "__main__":
    main()
