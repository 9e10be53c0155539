"""Evaluations of published work that we repeat, each a lab note."""

from pathlib import Path

from stillroom.eval_ssl.protocols.linear import LinearConfig
from stillroom.runs.schedule import Step


def simreg(*, checkpoint: tuple[str, ...], train: Path, test: Path, out: Path) -> LinearConfig:
    """SimReg's linear recipe (Navaneet et al., BMVC 2021), on features of centre crops by default.

    SGD with momentum 0.9, batch 256, rate 0.01 divided by 10 after 15 and 30 of 40 epochs, weight decay 1e-4; features
    L2-normalised, then standardised. `LegacySimregConfig` does what the released code does, and says where it differs:
    variance, first weights, last batch, input. Expected from a MoCo-v2 ResNet-50: ResNet-18 65.1 % on ImageNet.
    """
    return LinearConfig(
        checkpoint=checkpoint,
        train=train,
        test=test,
        out=out,
        name="simreg-v1",
        lrs=(0.01,),
        weight_decays=(1e-4,),
        unit=(True,),
        epochs=40,
        probe_batch_size=256,
        schedule=Step(every=15, gamma=0.1),
    )
