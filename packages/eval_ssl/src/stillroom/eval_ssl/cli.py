"""`stillroom-eval-ssl knn | smoke`."""

from pathlib import Path
from typing import Any

import tyro

from stillroom.backbone.command import plainly
from stillroom.eval_ssl.config import KnnConfig
from stillroom.eval_ssl.evaluate import evaluate_knn, report


def presets() -> dict[str, KnnConfig]:
    """`knn` asks for everything; `smoke` evaluates a random net on the toy data in seconds."""
    missing: Any = tyro.MISSING
    toy = Path("data/toy")
    return {
        "knn": KnnConfig(checkpoint=missing, train=missing, test=missing, out=missing),
        "smoke": KnnConfig(
            checkpoint="random:cifar/resnet20",
            train=toy / "forms/train",
            test=toy / "forms/val",
            out=Path("runs/smoke-knn"),
        ),
    }


@plainly
def main() -> None:
    """Entry point of `stillroom-eval-ssl`."""
    notes = {
        "knn": "Exact k-NN classification with cosine similarity of frozen features.",
        "smoke": "k-NN of a random net, by default on the toy data: seconds, and proves only that it works.",
    }
    config = tyro.cli(
        tyro.extras.subcommand_type_from_defaults(presets(), descriptions=notes),
        prog="stillroom-eval-ssl",
        description="Frozen evaluation of any backbone.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    print(report(evaluate_knn(config)))
