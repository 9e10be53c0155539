"""`stillroom-eval-ssl knn | linear | linear-simreg | logreg | few-shot | features | smoke`."""

from pathlib import Path
from typing import Any

import tyro

from stillroom.backbone.command import print_on_main, report_errors
from stillroom.eval_ssl.config import FeaturesConfig, FewShotConfig, KnnConfig, LinearConfig, LogregConfig
from stillroom.eval_ssl.presets import simreg
from stillroom.eval_ssl.settings import preflight

NOTES = {
    "knn": "Exact k-NN classification of frozen features.",
    "linear": "A linear classifier of frozen features: a grid of settings, chosen on a held-out part of TRAIN.",
    "linear-simreg": "SimReg's linear evaluation: one setting, unit length, rate / 10 at 15 and 30, cached or live.",
    "logreg": "Logistic regression by L-BFGS to convergence, its penalty chosen on a held-out part of TRAIN.",
    "few-shot": "Logistic regression from 1 to 16 images of each class, mean and spread of several draws.",
    "features": "The features as .npy, .safetensors or Parquet files.",
    "smoke": "k-NN of a random net, by default on the toy data: seconds, and proves only that it works.",
}


@report_errors
def main() -> None:
    """Entry point of `stillroom-eval-ssl`."""
    config = tyro.cli(
        command_type(),
        prog="stillroom-eval-ssl",
        description="Frozen evaluation of any backbone.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    preflight(config)  # before torch is imported
    from stillroom.eval_ssl.evaluation import evaluate
    from stillroom.eval_ssl.report import report

    print_on_main(report(evaluate(config)))


def command_type() -> Any:
    """Every command asks for everything; `smoke` has the toy data for its defaults."""
    missing: Any = tyro.MISSING
    toy = Path("data/toy/heldout-shapes")
    alone = {"checkpoint": missing, "train": missing, "out": missing}
    given = alone | {"test": missing}
    configs = {
        "knn": KnnConfig(**alone),
        "linear": LinearConfig(**given),
        "linear-simreg": simreg(**given),
        "logreg": LogregConfig(**given),
        "few-shot": FewShotConfig(**given),
        "features": FeaturesConfig(**alone),
        "smoke": KnnConfig(
            checkpoint=("random:cifar/resnet20",), train=toy / "train", test=toy / "val", out=Path("runs/smoke-knn")
        ),
    }
    return tyro.extras.subcommand_type_from_defaults(configs, descriptions=NOTES)
