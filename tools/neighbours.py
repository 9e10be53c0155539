"""Compare students with a teacher without labels: their neighbour agreement, and the neighbours as images.

python tools/eval_ssl.py features --no-labels --train IMAGES --checkpoint TEACHER --out runs/teacher-features
python tools/eval_ssl.py features --no-labels --train IMAGES --checkpoint STUDENT --out runs/student-features
python tools/neighbours.py --teacher runs/teacher-features --nets runs/student-features --out runs/neighbours
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from stillroom.backbone.atomic import refuse_existing
from stillroom.backbone.checks import at_least
from stillroom.backbone.command import report_errors
from stillroom.runs import format_table


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Compare nets with a teacher by nearest neighbours among the same images."""

    teacher: Path
    """Run directory of `eval_ssl.py features`."""
    nets: tuple[Path, ...]
    """Run directories of the same command on the same images; the sheet shows the neighbours of the first net."""
    out: Path
    """Folder to create: agreement.json, neighbours.png, map-teacher.png, and map-student.png of the first net."""
    k: int = 10
    """Number of neighbours, by cosine."""
    seed: int = 0
    """Seed of the choice of images that are shown."""


def check(settings: Settings) -> None:
    """Validate the settings before torch is imported.

    Raises:
        ValueError: an existing output, numbers out of range, or a folder that is not a run of `eval_ssl.py features`
            with --format npy.
    """
    refuse_existing(settings.out)
    at_least(settings, 1, "k")
    at_least(settings, 0, "seed")
    for run in (settings.teacher, *settings.nets):
        if not (run / "train.npy").is_file():
            raise ValueError(f"{run} has no train.npy: pass a run of `eval_ssl.py features`")


def agreement_text(value: float, unit: str = "") -> str:
    """Neighbour agreement in percent; as it is corrected for chance, 0 and below are no better than chance."""
    text = f"{100 * max(value, 0):.1f}{unit}"
    return text if value > 0 else f"{text} (no better than chance)"


@report_errors
def main() -> None:
    """Compare the nets and print a table."""
    settings = tyro.cli(Settings, description=__doc__)
    check(settings)
    from neighbour_sheet import compare  # noqa: PLC0415  # it imports torch

    agreement = compare(settings.teacher, settings.nets, settings.out, k=settings.k, seed=settings.seed)
    rows = [[net, agreement_text(value)] for net, value in agreement.items()]
    print(format_table(["net", f"agreement of the {settings.k} nearest neighbours, %"], rows))


if __name__ == "__main__":
    main()
