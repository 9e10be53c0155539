"""`stillroom-eval-ssl knn | linear | linear-simreg | legacy-simreg | legacy-simreg-knn | logreg | few-shot | ...`."""

from pathlib import Path
from typing import Any

import tyro

from stillroom.backbone.command import parse_command, print_on_main, report_errors
from stillroom.eval_ssl.presets import simreg
from stillroom.eval_ssl.protocols import FeaturesConfig, FewShotConfig, KnnConfig, LinearConfig, LogregConfig
from stillroom.eval_ssl.protocols.legacy_simreg import LegacySimregConfig, LegacySimregKnnConfig

DESCRIPTIONS = {
    "knn": "Exact k-NN classification of frozen features.",
    "linear": "A grid of linear classifiers of frozen features; the best one is selected on a held-out part of TRAIN.",
    "linear-simreg": "SimReg's linear evaluation: one setting, unit length, rate / 10 at epochs 15 and 30.",
    "legacy-simreg": "SimReg's linear evaluation as its released code does it, quirks included.",
    "legacy-simreg-knn": "SimReg's k-NN evaluation as its released code does it: float16, random ties, k = 1 and 20.",
    "logreg": "Logistic regression by L-BFGS to convergence; its penalty is selected on a held-out part of TRAIN.",
    "few-shot": "Logistic regression from 1 to 16 images per class: mean and standard deviation of several draws.",
    "features": "Write the features as .npy, .safetensors or Parquet files.",
    "smoke": "k-NN of a random net, on the toy data by default: takes seconds, and shows only that it works.",
}


@report_errors
def main() -> None:
    """Entry point of `stillroom-eval-ssl`."""
    # 1. Parse the flags into the config of a protocol.
    config = parse_command(
        command_type(),
        prog="stillroom-eval-ssl",
        description="Frozen evaluation of any backbone.",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    # 2. Refuse bad flags and missing paths, before torch is imported.
    config.preflight()
    from stillroom.eval_ssl.comparison import report
    from stillroom.eval_ssl.evaluation import evaluate

    # 3. Evaluate, and print the table.
    print_on_main(report(evaluate(config)))


def command_type() -> Any:
    """The subcommands as one type for tyro: paths are required, except those of `smoke`, which has the toy data."""
    missing: Any = tyro.MISSING
    toy = Path("data/toy/heldout-shapes")
    paths = {"checkpoint": missing, "train": missing, "out": missing}
    paths_with_test = paths | {"test": missing}
    configs = {
        "knn": KnnConfig(**paths),
        "linear": LinearConfig(**paths_with_test),
        "linear-simreg": simreg(**paths_with_test),
        "legacy-simreg": LegacySimregConfig(**paths_with_test),
        "legacy-simreg-knn": LegacySimregKnnConfig(**paths_with_test),
        "logreg": LogregConfig(**paths_with_test),
        "few-shot": FewShotConfig(**paths_with_test),
        "features": FeaturesConfig(**paths),
        "smoke": KnnConfig(
            checkpoint=("random:cifar/resnet20",), train=toy / "train", test=toy / "val", out=Path("runs/smoke-knn")
        ),
    }
    return tyro.extras.subcommand_type_from_defaults(configs, descriptions=DESCRIPTIONS)
