"""`stillroom-eval-ssl knn | smoke`."""

from pathlib import Path
from typing import Any

import tyro

from stillroom.backbone.command import plainly
from stillroom.eval_ssl.config import KnnConfig
from stillroom.eval_ssl.evaluate import evaluate_knn, report

NOTES = {
    "knn": "Exact k-NN classification of frozen features.",
    "smoke": "k-NN of a random net, by default on the toy data: seconds, and proves only that it works.",
}


@plainly
def main() -> None:
    """Entry point of `stillroom-eval-ssl`."""
    config = tyro.cli(
        command_type(),
        prog="stillroom-eval-ssl",
        description="Frozen evaluation of any backbone.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    print(report(evaluate_knn(config)))


def command_type() -> Any:
    """`knn` asks for everything; `smoke` has the toy data for its defaults."""
    missing: Any = tyro.MISSING
    toy = Path("data/toy/heldout-shapes")
    configs = {
        "knn": KnnConfig(checkpoint=missing, train=missing, out=missing),
        "smoke": KnnConfig(
            checkpoint="random:cifar/resnet20", train=toy / "train", test=toy / "val", out=Path("runs/smoke-knn")
        ),
    }
    return tyro.extras.subcommand_type_from_defaults(configs, descriptions=NOTES)
