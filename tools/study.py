"""The runs behind docs/results.md, one command per table. Done cells are kept, stopped ones go on.

    python tools/study.py kdep-imagenette --data DATA --out runs/study
    python tools/study.py methods --data DATA --out runs/methods
    python tools/study.py finetune --data DATA --out runs/methods
    python tools/study.py segment --data DATA --out runs/methods
    python tools/study.py detect --data DATA --out runs/methods --backend torchvision

DATA holds the files that docs/results.md names; they are not part of the repository.
"""

import json
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from stillroom.backbone import read_results
from stillroom.backbone.command import Command, report_errors
from stillroom.backbone.results import format_table

TOOLS = Path(__file__).parent
STUDIES = TOOLS.parent / "docs" / "studies"


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
        imagenette, cifar, teacher = photographs(self.data, self.out)
        recipe = ("--epochs", self.epochs, "--batch-size", 64, "--lr", 0.1)
        distilled = ("--student", "cifar/resnet20", "--student.crop-fraction", 1, "--data", imagenette / "train",
                     "--teacher", teacher, "--teacher.size", 128, "--view.min-scale", 0.35, *recipe,
                     "--loss-weight", 30, "--amp", "bf16")  # fmt: skip
        once("distill", "kdep", self.out / "kdep-after", *distilled, "--teacher.feature", "after", "schedule:cosine")
        supervise(self.out / "supervised", imagenette, *recipe)
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


@dataclass(frozen=True, kw_only=True)
class Method:
    """A preset with what short pilot runs chose for it."""

    preset: str
    loss_weight: float
    lr: float
    flags: tuple[str, ...] = ()


AFTER = ("--teacher.feature", "after")
METHODS = {
    "KDEP": Method(preset="kdep", loss_weight=0.3, lr=1.0, flags=AFTER),
    "SVD only": Method(preset="svd", loss_weight=1.0, lr=1.0, flags=AFTER),
    "SimReg": Method(preset="simreg", loss_weight=0.3, lr=1.0),
    "1x1 convolution": Method(preset="conv1x1", loss_weight=1.0, lr=1.0, flags=AFTER),
    "logits": Method(preset="logits", loss_weight=0.3, lr=0.1),
}
AT_TENTH = ("KDEP", "SVD only", "SimReg")
EPOCHS = {100: 15, 10: 155}  # 2,175 and 2,170 steps of 64 images
VIEWS = {100: 4, 10: 40}  # cached, of each image


@dataclass(frozen=True, kw_only=True)
class Methods:
    """KDEP, SimReg and their rivals at equal steps, on all and on a tenth of Imagenette, several seeds.

    Every cell is a run and two k-NN evaluations. Their results.json are kept in `keep`, and a cell that is there is not
    run again, on whatever machine the study goes on.
    """

    data: Path
    """Folder with imagenette128.zip, cifar10_jpeg.zip and teacher_mobilenetv2_imagenet.safetensors."""
    out: Path
    """Folder of the runs."""
    keep: Path = STUDIES / "methods"
    """Folder of the results that are done."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, order and views; and of the images of the tenth."""
    only: str | None = None
    """Run the cells whose name contains this, and no table."""
    amp: Literal["none", "bf16"] = "bf16"
    """Number format of the students' training: a CPU without bf16 instructions is many times faster with none."""

    def run(self) -> None:
        imagenette, cifar, teacher = photographs(self.data, self.out)
        folders = {"imagenette": imagenette, "cifar10": cifar}
        for cell, method, part, seed in self.cells():
            if self.only is not None and self.only not in cell:
                continue
            if all((self.keep / f"{cell}-{name}.json").exists() for name in folders):
                continue
            self.train(cell, method, part, seed, imagenette / "train", teacher)
            self.evaluate(cell, self.out / cell / "student", folders)
        if self.only is None:
            for cell, net in (("random", "random:cifar/resnet20"), ("teacher", teacher)):
                self.evaluate(cell, net, folders)
            print(self.table(tuple(folders)))

    def cells(self) -> Iterator[tuple[str, Method, int, int]]:
        """Name, method, percent of the images, seed; whole rows of the table seed by seed."""
        for seed in self.seeds:
            for part in (100, 10):
                for name, method in METHODS.items():
                    if part == 100 or name in AT_TENTH:
                        yield f"{method.preset}-{part}-{seed}", method, part, seed

    def train(self, cell: str, method: Method, part: int, seed: int, data: Path, teacher: Path) -> None:
        """One student."""
        if part < 100:
            listed = self.out / f"part-{part}-{seed}.txt"
            if not listed.exists():
                tool("make_subset", "--data", data, "--fraction", part / 100, "--seed", seed, "--out", listed)
            data = listed
        once("distill", method.preset, self.out / cell, "--teacher", teacher, "--teacher.size", 128,
             "--student", "cifar/resnet20", "--student.crop-fraction", 1, "--data", data, *method.flags,
             "--epochs", EPOCHS[part], "--cache.views", VIEWS[part], "--cache.keep", "outputs", "--batch-size", 64,
             "--lr", method.lr, "--weight-decay", 5e-4, "--loss-weight", method.loss_weight, "--amp", self.amp,
             "--seed", seed, "--monitor.every", EPOCHS[part] // 3, "view:kdep-view", "--view.min-scale", 0.35,
             "schedule:cosine")  # fmt: skip

    def evaluate(self, cell: str, net: Path | str, folders: dict[str, Path]) -> None:
        """k-NN on each data set, the results kept."""
        for name, folder in folders.items():
            kept, run = self.keep / f"{cell}-{name}.json", self.out / f"knn-{cell}-{name}"
            if kept.exists():
                continue
            once("eval_ssl", "knn", run, "--checkpoint", net, "--train", folder / "train", "--test", folder / "val")
            self.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(run / "results.json", kept)

    def table(self, names: tuple[str, ...]) -> str:
        """Mean and standard deviation over the seeds of top-1 at k = 20, percent."""
        rows = [["random ResNet-20", "-", *(self.spread([f"random-{name}"]) for name in names)]]
        for part in (100, 10):
            for label, method in METHODS.items():
                if part == 100 or label in AT_TENTH:
                    cells = [f"{method.preset}-{part}-{seed}" for seed in self.seeds]
                    rows.append([label, f"{part} %", *(self.spread([f"{c}-{n}" for c in cells]) for n in names)])
        rows.append(["teacher MobileNet-V2", "-", *(self.spread([f"teacher-{name}"]) for name in names)])
        return format_table(["k-NN top-1, %", "images", *names], rows)

    def spread(self, cells: list[str]) -> str:
        """Mean and, over several seeds, standard deviation."""
        values = [100 * read_results(self.keep / f"{cell}.json").metrics["top1_k20"] for cell in cells]
        apart = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{apart}"


LABELS = {100: 5, 10: 50}  # percent of the labelled images: passes over them; 700 steps of 64 images either way


@dataclass(frozen=True, kw_only=True)
class FromFirstWeights:
    """ResNet-20 to go on from: random, supervised, and distilled by KDEP and SimReg in as many steps."""

    data: Path
    """Folder with imagenette128.zip, cifar10_jpeg.zip, teacher_mobilenetv2_imagenet.safetensors, ccp8.zip, bccd.zip."""
    out: Path
    """Folder of the runs; where `methods` has run, its students are taken."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of what begins there: images that are drawn, classifier or decoder, order and views."""
    student_seed: int = 0
    """Of the distilled students, one of each method."""
    amp: Literal["none", "bf16"] = "bf16"
    """Number format of the students' and the supervised net's training."""

    def first_weights(self) -> list[Path | str]:
        """The four, made where they are missing."""
        imagenette, _, teacher = photographs(self.data, self.out)
        supervised = self.out / "supervised-15"
        supervise(supervised, imagenette, "--epochs", EPOCHS[100], "--batch-size", 64, "--lr", 0.1, "--amp", self.amp)
        nets: list[Path | str] = ["random", supervised / "checkpoint"]
        for method in (METHODS["KDEP"], METHODS["SimReg"]):
            cell = f"{method.preset}-100-{self.student_seed}"
            Methods(data=self.data, out=self.out, amp=self.amp).train(
                cell, method, 100, self.student_seed, imagenette / "train", teacher
            )
            nets.append(self.out / cell / "student")
        return nets


@dataclass(frozen=True, kw_only=True)
class Finetune(FromFirstWeights):
    """Fine-tuning to CIFAR-10 from random, supervised and distilled weights, on a tenth and on all of the labels."""

    keep: Path = STUDIES / "finetune"
    """Folder of the tables that are done."""
    only: int | None = None
    """Percent of the labelled images: run this one alone."""

    def run(self) -> None:
        nets, (_, cifar, _) = self.first_weights(), photographs(self.data, self.out)
        for part, epochs in LABELS.items():
            kept, sweep = self.keep / f"cifar10-{part}.json", self.out / f"finetune-{part}"
            if kept.exists() or self.only not in (None, part):
                continue
            tool("cls_transfer", "finetune", "--checkpoint", *nets, "--train", cifar / "train", "--test", cifar / "val",
                 "--fraction", part / 100, "--epochs", epochs, "--batch-size", 64, "--lrs", 0.01, 0.1, "--seeds",
                 *self.seeds, "--min-scale", 0.35, "--amp", "bf16", "--out", sweep)  # fmt: skip
            self.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(sweep / "table.json", kept)


@dataclass(frozen=True, kw_only=True)
class Segment(FromFirstWeights):
    """PSPNet on street photographs with masks (ccp8), from random, supervised and distilled weights."""

    keep: Path = STUDIES / "segment"
    """Folder of the tables."""
    lr: float = 0.05
    """Of the backbone; the decoder's is 0.05 whatever this is."""

    def run(self) -> None:
        sweep = self.out / f"segment-{self.lr:g}"
        tool("seg_transfer", "pspnet", "--checkpoint", *self.first_weights(), "--data",
             unpack(self.data / "ccp8.zip", self.out), "--channels", 64, "--steps", 1000, "--batch-size", 8, "--crop",
             96, "--scale", 0.5, 1.5, "--lr", self.lr, "--head-lr", 0.05 / self.lr, "--seeds", *self.seeds,
             "--out", sweep)  # fmt: skip
        self.keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(sweep / "table.json", self.keep / f"lr-{self.lr:g}.json")
        title = f"PSPNet on ccp8, backbone's rate {self.lr:g}"
        draw_classes(sweep, "iou_per_class", "IoU, %", title, self.keep / f"lr-{self.lr:g}.png")


@dataclass(frozen=True, kw_only=True)
class Detect(FromFirstWeights):
    """Faster R-CNN on blood cells (bccd), from random, supervised and distilled weights."""

    backend: Literal["detectron2", "torchvision"]
    """Whose detector and loop."""
    keep: Path = STUDIES / "detect"
    """Folder of the tables."""
    lr: float = 0.01
    """Of everything."""
    size: int = 240
    """Short side of the photographs, 3 to 4, in pixels."""
    measure: Literal["test", "val"] = "test"
    """Part that is measured: val to choose a rate, test to report."""

    def run(self) -> None:
        name = f"{self.backend}-{self.size}px-{self.measure}-lr-{self.lr:g}"
        sweep = self.out / f"detect-{name}"
        cells = unpack(self.data / "bccd.zip", self.out) / "BCCD"
        tool("det_transfer", "faster-rcnn-fpn", "--backend", self.backend, "--checkpoint", *self.first_weights(),
             "--data", cells, "--layout", "voc", "--splits", "train", self.measure, "--on-bad-box", "skip", "--fpn-dim",
             64, "--box-dim", 256, "--rois", 64, "--anchor-scale", 7 * self.size / 160, "--train-sizes", self.size,
             "--test-size", self.size, "--max-size", 2 * self.size, "--steps", 256, "--batch-size", 4, "--warmup", 50,
             "--lr", self.lr, "--seeds", *self.seeds, "--out", sweep)  # fmt: skip
        self.keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(sweep / "table.json", self.keep / f"{name}.json")
        title = f"Faster R-CNN of {self.backend} on bccd"
        draw_classes(sweep, "ap_per_class", "AP, %", title, self.keep / f"{name}.png")
        rows = json.loads((sweep / "table.json").read_text())["rows"]
        best = max(rows.values(), key=lambda row: row["mean"])
        from PIL import Image  # noqa: PLC0415  # a picture is drawn at a study's end alone

        with Image.open(sweep / best["runs"][0] / "figures" / "sheet.png") as sheet:
            sheet.convert("RGB").reduce(2).save(self.keep / f"{name}-sheet.jpg", quality=85)


def draw_classes(sweep: Path, per_class: str, label: str, title: str, file: Path) -> None:
    """Bars of a metric of each class, for each net: mean over the seeds, and where each seed lies."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # a picture is drawn at a study's end alone

    from stillroom.backbone.figures import save  # noqa: PLC0415

    table = json.loads((sweep / "table.json").read_text())
    metric, rows = table["metric"], table["rows"]
    figure = Figure(figsize=(9, 3.5))
    axes = figure.add_subplot(ylabel=label, title=title)
    for place, (net, row) in enumerate(rows.items()):
        by_class = row[per_class]
        left = [number + 0.2 * place for number in range(len(by_class))]
        means = [100 * statistics.mean(values) for values in by_class.values()]
        axes.bar(left, means, 0.18, label=f"{Path(net).parent.name or net}: {metric} {100 * row['mean']:.1f} %")
        for x, values in zip(left, by_class.values(), strict=True):
            axes.plot([x] * len(values), [100 * value for value in values], "k_", markersize=4)
    axes.set_xticks([number + 0.3 for number in range(len(by_class))], list(by_class))
    axes.legend(fontsize=8)
    save(figure, file)


def supervise(out: Path, imagenette: Path, *recipe: object) -> None:
    """ResNet-20 trained on Imagenette's labels."""
    once("cls_transfer", "scratch", out, *recipe, "--checkpoint", "random:cifar/resnet20", "--crop-fraction", 1,
         "--train", imagenette / "train", "--test", imagenette / "val", "--held-out", 0)  # fmt: skip


def photographs(data: Path, out: Path) -> tuple[Path, Path, Path]:
    """Imagenette, CIFAR-10 and the imported teacher, below `out`."""
    imagenette, cifar = (unpack(data / f"{name}.zip", out) for name in ("imagenette128", "cifar10_jpeg"))
    teacher = out / "teacher"
    if not teacher.exists():
        tool("checkpoint", "import", data / "teacher_mobilenetv2_imagenet.safetensors", "--out", teacher,
             "--source", "timm", "--backbone", "timm/mobilenetv2_100", "--arguments", "pad_type=same",
             "--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5, "--size", 128, "--crop-fraction", 1,
             "--licence", "Apache-2.0")  # fmt: skip
    return imagenette, cifar, teacher


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


@report_errors
def main() -> None:
    """Run one study."""
    studies: dict[str, Callable[..., Command]] = {
        "kdep-imagenette": KdepImagenette, "methods": Methods, "finetune": Finetune,
        "segment": Segment, "detect": Detect,
    }  # fmt: skip
    tyro.extras.subcommand_cli_from_dict(studies, description=__doc__).run()


if __name__ == "__main__":
    main()
