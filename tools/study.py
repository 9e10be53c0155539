"""The runs behind docs/results.md, one command per table. Done cells are kept, stopped ones go on.

    python tools/study.py kdep-imagenette --data DATA --out runs/study

DATA holds the files that docs/results.md names; they are not part of the repository.
"""

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from stillroom.backbone.command import plainly

TOOLS = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class KdepImagenette:
    """KDEP from MobileNet-V2 (ImageNet) into ResNet-20 on Imagenette, judged by k-NN there and on CIFAR-10."""

    data: Path
    """Folder with imagenette128.zip, cifar10_jpeg.zip and teacher_mobilenetv2_imagenet.safetensors."""
    out: Path
    """Folder of the runs."""
    epochs: int = 20
    """Passes over the 9,469 training images, for every net."""

    def run(self) -> None:
        imagenette, cifar = (unpack(self.data / f"{name}.zip", self.out) for name in ("imagenette128", "cifar10_jpeg"))
        teacher = self.out / "teacher"
        if not teacher.exists():
            tool("checkpoint", "import", self.data / "teacher_mobilenetv2_imagenet.safetensors", "--out", teacher,
                 "--source", "timm", "--backbone", "timm/mobilenetv2_100", "--arguments", "pad_type=same",
                 "--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5, "--size", 128, "--crop-fraction", 1,
                 "--licence", "Apache-2.0")  # fmt: skip
        recipe = ("--epochs", self.epochs, "--batch-size", 64, "--lr", 0.1)
        distilled = ("--student", "cifar/resnet20", "--student.crop-fraction", 1, "--data", imagenette / "train",
                     "--teacher", teacher, "--teacher.size", 128, "--view.min-scale", 0.35, *recipe,
                     "--loss-weight", 30, "--amp", "bf16")  # fmt: skip
        once("distill", "kdep", self.out / "kdep-after", *distilled, "--teacher.feature", "after", "schedule:cosine")
        once("cls_transfer", "scratch", self.out / "supervised", *recipe, "--checkpoint", "random:cifar/resnet20",
             "--crop-fraction", 1, "--train", imagenette / "train", "--test", imagenette / "val")  # fmt: skip
        once("distill", "kdep", self.out / "kdep-before", *distilled, "--teacher.feature", "before", "schedule:cosine")
        nets = {
            "random ResNet-20": "random:cifar/resnet20",
            "supervised ResNet-20": self.out / "supervised" / "checkpoint",
            "KDEP ResNet-20, teacher after": self.out / "kdep-after" / "student",
            "KDEP ResNet-20, teacher before": self.out / "kdep-before" / "student",
            "teacher MobileNet-V2": teacher,
        }
        rows = []
        for label, net in nets.items():
            runs = []
            for name, folder in (("imagenette", imagenette), ("cifar10", cifar)):
                runs.append(self.out / f"knn-{label.replace(' ', '-').replace(',', '')}-{name}")
                once("eval_ssl", "knn", runs[-1], "--checkpoint", net, "--train", folder / "train",
                     "--test", folder / "val")  # fmt: skip
            rows.append(f"{label}={','.join(map(str, runs))}")
        tool("table", *rows, "--metric", "top1_k20", "--out", self.out / "table.json")


def once(name: str, preset: str, out: Path, *arguments: object) -> None:
    """Run a tool unless its results are there; go on with a run that was stopped."""
    if (out / "results.json").exists():
        return
    if (out / "config.json").exists():
        tool(name, "resume", out)
    else:
        tool(name, preset, "--out", out, *arguments)


def tool(name: str, *arguments: object) -> None:
    """Run one of our scripts and stop the study where it fails.

    Raises:
        ValueError: when the script failed; it has said why.
    """
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
    print("$", " ".join(command[1:]), flush=True)
    if subprocess.run(command).returncode != 0:
        raise ValueError(f"{name}.py failed; the study goes on from there when it is started again")


def unpack(archive: Path, out: Path) -> Path:
    """The folder of an archive, unpacked once.

    Raises:
        ValueError: when the archive is missing.
    """
    if not archive.exists():
        raise ValueError(f"there is no {archive}: --data is the folder that docs/results.md describes")
    folder = out / archive.stem
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        zipfile.ZipFile(archive).extractall(partial)
        partial.rename(folder)
    return folder


@plainly
def main() -> None:
    """Run one study."""
    tyro.extras.subcommand_cli_from_dict({"kdep-imagenette": KdepImagenette}, description=__doc__).run()


if __name__ == "__main__":
    main()
