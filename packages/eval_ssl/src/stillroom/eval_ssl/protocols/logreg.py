"""Logistic regression, `logreg/v1`: fitted by L-BFGS to convergence on standardised features."""

from dataclasses import dataclass
from typing import ClassVar

from stillroom import backbone, eval_ssl  # lazy packages: torch is imported when the protocol runs
from stillroom.backbone.checks import above, at_least
from stillroom.eval_ssl.config import Outcome, check_held_out, check_penalties
from stillroom.eval_ssl.protocols.classifier import ClassifierConfig, join_settings
from stillroom.images import Source


@dataclass(frozen=True, kw_only=True)
class LogregConfig(ClassifierConfig):
    """Logistic regression by L-BFGS to convergence; its penalty is selected on a held-out part of TRAIN."""

    task: ClassVar[str] = "logreg"
    title: ClassVar[str] = "logistic regression"

    penalties: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    """L2 penalties l of the grid, in mean cross-entropy + l/2 |W|^2."""
    held_out: float = 0.1
    """Fraction of each TRAIN class that the penalties are compared on; the best one is then fitted to all of TRAIN."""
    tolerance: float = 1e-5
    """Largest entry of the gradient at which a fit has converged."""
    iterations: int = 1000
    """L-BFGS iterations per penalty at most; a fit that has not converged by then is reported."""

    def check(self) -> None:
        """Refuse flags that cannot work, whatever the images are."""
        super().check()
        check_penalties(self.penalties)
        check_held_out(self.held_out)
        at_least(self, 1, "iterations")
        above(self, 0, "tolerance")

    def check_images(self, train: Source, test: Source | None) -> None:
        """Refuse a class that leaves nothing to hold out, where penalties are compared."""
        if len(self.penalties) > 1:
            self.check_split(train, self.held_out)

    def evaluate(self, features: "eval_ssl.FeatureSets", run: "backbone.Run") -> Outcome:
        """Choose a penalty, fit it to all of TRAIN, classify TEST."""
        from stillroom.eval_ssl.logreg import logistic_regression
        from stillroom.runs.hardware import float64_device

        # Every penalty on part of TRAIN, the best one on all of it.
        train, queries, device = features.train, features.queries, float64_device(run.device)
        result = logistic_regression(
            train.features.to(device),
            train.labels.to(device),
            queries.features.to(device),
            len(features.classes),
            self.penalties,
            held_out=self.held_out,
            seed=self.seed,
            tolerance=self.tolerance,
            iterations=self.iterations,
        )

        # The outcome: protocol id, metrics and the grid.
        held_out = f" held-out={self.held_out:g}" if len(self.penalties) > 1 else ""
        protocol = (
            f"logreg/v1 {features.description} standardised tolerance={self.tolerance:g} "
            f"iterations={self.iterations} penalties={join_settings(self.penalties)}{held_out}"
        )
        grid = [
            {"penalty": penalty, "held_out_top1": top1}
            for penalty, top1 in zip(self.penalties, result.accuracies, strict=False)
        ]
        extra = {
            "chosen": {"penalty": result.penalty},
            "grid": grid,
            "fits": [{"gradient": gradient, "iterations": iterations} for gradient, iterations in result.fits],
            "converged": all(gradient <= self.tolerance for gradient, _ in result.fits),
        }
        return self.outcome(protocol, result.logits, features, extra)
