"""Which label-free metric follows k-NN accuracy: students of good and bad recipes, measured during training.

    python tools/study_agreement.py --data DATA --out runs/agreement

ResNet-20 at 32 px is distilled from MobileNet-V2 at 128 px on nine tenths of Imagenette, with the parts of the package
and three views of each image in memory: 756 steps of 64 images per recipe. k-NN (k = 20) is measured on the other
tenth, the metrics on 426 images that are not trained on. Stored measurements are not repeated.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from stillroom.backbone.command import report_errors
from study import STUDIES


@dataclass(frozen=True, kw_only=True)
class AgreementStudy:
    """Correlate label-free metrics with k-NN accuracy, over recipes and moments of training."""

    data: Path
    """Folder with imagenette128.zip, cifar10_jpeg.zip and teacher_mobilenetv2_imagenet.safetensors."""
    out: Path
    """Folder of images, teacher and scratch files."""
    keep: Path = STUDIES / "agreement"
    """Folder of the measurements and the scatter plot."""

    def run(self) -> None:
        from agreement_runs import measure_recipes  # noqa: PLC0415  # it imports torch

        measure_recipes(self.data, self.out, self.keep)


@report_errors
def main() -> None:
    """Run the study."""
    tyro.cli(AgreementStudy, description=__doc__).run()


if __name__ == "__main__":
    main()
