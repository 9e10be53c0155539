"""The runs behind docs/results.md, one command per table. Finished cells are kept, stopped ones are resumed.

    python tools/study.py kdep-imagenette --data DATA --out runs/study
    python tools/study.py methods --data DATA --out runs/methods
    python tools/study.py finetune --data DATA --out runs/methods
    python tools/study.py segment --data DATA --out runs/methods
    python tools/study.py detect --data DATA --out runs/methods --backend torchvision

DATA holds the files named in docs/results.md; they are not part of the repository.
"""

import json
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from stillroom.backbone.command import Command, report_errors
from stillroom.runs import read_results
from stillroom.runs.results import format_table

TOOLS = Path(__file__).parent
STUDIES = TOOLS.parent / "docs" / "studies"
Flags = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class KdepImagenette:
    """KDEP from MobileNet-V2 (ImageNet) into ResNet-20 on Imagenette, evaluated by k-NN there and on CIFAR-10."""

    data: Path
    """Folder with imagenette128.zip, cifar10_jpeg.zip and teacher_mobilenetv2_imagenet.safetensors."""
    out: Path
    """Folder of the runs."""
    epochs: int = 20
    """Passes over the 9,469 training images, for every net."""

    def run(self) -> None:
        imagenette, cifar, teacher = photographs(self.data, self.out)
        recipe = {"epochs": self.epochs, "batch-size": 64, "lr": 0.1}
        distilled = {
            "student": "cifar/resnet20",
            "student.crop-fraction": 1,
            "data": imagenette / "train",
            "teacher": teacher,
            "teacher.size": 128,
            "view.min-scale": 0.35,
            **recipe,
            "loss-weight": 30,
            "amp": "bf16",
        }
        after, before = (distilled | {"teacher.feature": feature} for feature in ("after", "before"))
        run_or_resume("distill", "kdep", self.out / "kdep-after", after, "schedule:cosine")
        supervise(self.out / "supervised", imagenette, recipe)
        run_or_resume("distill", "kdep", self.out / "kdep-before", before, "schedule:cosine")
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
                knn = {"checkpoint": net, "train": folder / "train", "test": folder / "val"}
                run_or_resume("eval_ssl", "knn", runs[-1], knn)
            rows.append(f"{label}={','.join(map(str, runs))}")
        tool("table", *rows, {"metric": "top1_k20", "out": self.out / "table.json"})


@dataclass(frozen=True, kw_only=True)
class Method:
    """A preset with the loss weight and learning rate that short pilot runs chose."""

    preset: str
    loss_weight: float
    lr: float
    flags: Flags = field(default_factory=dict)


AFTER = {"teacher.feature": "after"}
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
    """KDEP, SimReg and their baselines at equal steps, on all and on a tenth of Imagenette, several seeds.

    Every cell is a run and two k-NN evaluations. Their results.json are stored in `keep`, and a cell found there is not
    run again, on whatever machine the study continues.
    """

    data: Path
    """Folder with imagenette128.zip, cifar10_jpeg.zip and teacher_mobilenetv2_imagenet.safetensors."""
    out: Path
    """Folder of the runs."""
    keep: Path = STUDIES / "methods"
    """Folder of the finished results."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, order and views, and of the selection of the tenth."""
    only: str | None = None
    """Run only the cells whose name contains this, and print no table."""
    amp: Literal["none", "bf16"] = "bf16"
    """Number format of the students' training: CPUs without bf16 instructions are many times faster with none."""

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
        """Name, method, percent of the images, and seed of each cell; seed by seed."""
        for seed in self.seeds:
            for part in (100, 10):
                for name, method in METHODS.items():
                    if part == 100 or name in AT_TENTH:
                        yield f"{method.preset}-{part}-{seed}", method, part, seed

    def train(self, cell: str, method: Method, part: int, seed: int, data: Path, teacher: Path) -> None:
        """Train the student of a cell."""
        if part < 100:
            listed = self.out / f"part-{part}-{seed}.txt"
            if not listed.exists():
                tool("make_subset", {"data": data, "fraction": part / 100, "seed": seed, "out": listed})
            data = listed
        flags = {
            "teacher": teacher,
            "teacher.size": 128,
            "student": "cifar/resnet20",
            "student.crop-fraction": 1,
            "data": data,
            **method.flags,
            "epochs": EPOCHS[part],
            "cache.views": VIEWS[part],
            "cache.keep": "outputs",
            "batch-size": 64,
            "lr": method.lr,
            "weight-decay": 5e-4,
            "loss-weight": method.loss_weight,
            "amp": self.amp,
            "seed": seed,
            "monitor.every": EPOCHS[part] // 3,
        }
        view = ("view:kdep-view", {"view.min-scale": 0.35})
        run_or_resume("distill", method.preset, self.out / cell, flags, *view, "schedule:cosine")

    def evaluate(self, cell: str, net: Path | str, folders: dict[str, Path]) -> None:
        """Evaluate a net by k-NN on each data set, and keep the results."""
        for name, folder in folders.items():
            kept, run = self.keep / f"{cell}-{name}.json", self.out / f"knn-{cell}-{name}"
            if kept.exists():
                continue
            knn = {"checkpoint": net, "train": folder / "train", "test": folder / "val"}
            run_or_resume("eval_ssl", "knn", run, knn)
            self.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(run / "results.json", kept)

    def table(self, names: tuple[str, ...]) -> str:
        """The table: k-NN top-1 at k = 20, percent, mean and standard deviation over the seeds."""
        rows = [["random ResNet-20", "-", *(self.spread([f"random-{name}"]) for name in names)]]
        for part in (100, 10):
            for label, method in METHODS.items():
                if part == 100 or label in AT_TENTH:
                    cells = [f"{method.preset}-{part}-{seed}" for seed in self.seeds]
                    rows.append([label, f"{part} %", *(self.spread([f"{c}-{n}" for c in cells]) for n in names)])
        rows.append(["teacher MobileNet-V2", "-", *(self.spread([f"teacher-{name}"]) for name in names)])
        return format_table(["k-NN top-1, %", "images", *names], rows)

    def spread(self, cells: list[str]) -> str:
        """Mean, and with several seeds the standard deviation, percent."""
        values = [100 * read_results(self.keep / f"{cell}.json").metrics["top1_k20"] for cell in cells]
        deviation = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{deviation}"


LABELS = {100: 5, 10: 50}  # percent of the labelled images: passes over them; 700 steps of 64 images either way


@dataclass(frozen=True, kw_only=True)
class FromInitialWeights:
    """Initial weights of ResNet-20: random, supervised, and distilled by KDEP and SimReg in as many steps."""

    data: Path
    """Folder with imagenette128.zip, cifar10_jpeg.zip, teacher_mobilenetv2_imagenet.safetensors, ccp8.zip, bccd.zip."""
    out: Path
    """Folder of the runs; students that `methods` has trained there are reused."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the fine-tuning: selected images, classifier or decoder, order and views."""
    student_seed: int = 0
    """Seed of the distilled students, one of each method."""
    amp: Literal["none", "bf16"] = "bf16"
    """Number format of the students' and the supervised net's training."""

    def initial_weights(self) -> list[Path | str]:
        """The four initial weights; missing ones are trained."""
        imagenette, _, teacher = photographs(self.data, self.out)
        supervised = self.out / "supervised-15"
        recipe = {"epochs": EPOCHS[100], "batch-size": 64, "lr": 0.1, "amp": self.amp}
        supervise(supervised, imagenette, recipe)
        nets: list[Path | str] = ["random", supervised / "checkpoint"]
        for method in (METHODS["KDEP"], METHODS["SimReg"]):
            cell = f"{method.preset}-100-{self.student_seed}"
            Methods(data=self.data, out=self.out, amp=self.amp).train(
                cell, method, 100, self.student_seed, imagenette / "train", teacher
            )
            nets.append(self.out / cell / "student")
        return nets


@dataclass(frozen=True, kw_only=True)
class Finetune(FromInitialWeights):
    """Fine-tuning on CIFAR-10 from random, supervised and distilled weights, with a tenth and all of the labels."""

    keep: Path = STUDIES / "finetune"
    """Folder of the finished tables."""
    only: int | None = None
    """Run only this percentage of the labelled images, 10 or 100."""

    def run(self) -> None:
        nets, (_, cifar, _) = self.initial_weights(), photographs(self.data, self.out)
        for part, epochs in LABELS.items():
            kept, sweep = self.keep / f"cifar10-{part}.json", self.out / f"finetune-{part}"
            if kept.exists() or self.only not in (None, part):
                continue
            flags = {
                "checkpoint": nets,
                "train": cifar / "train",
                "test": cifar / "val",
                "fraction": part / 100,
                "epochs": epochs,
                "batch-size": 64,
                "lrs": (0.01, 0.1),
                "seeds": self.seeds,
                "min-scale": 0.35,
                "amp": "bf16",
                "out": sweep,
            }
            tool("cls_transfer", "finetune", flags)
            self.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(sweep / "table.json", kept)


@dataclass(frozen=True, kw_only=True)
class Segment(FromInitialWeights):
    """PSPNet on street photographs with masks (ccp8), from random, supervised and distilled weights."""

    keep: Path = STUDIES / "segment"
    """Folder of the tables."""
    lr: float = 0.05
    """Learning rate of the backbone; the decoder's is always 0.05."""

    def run(self) -> None:
        sweep = self.out / f"segment-{self.lr:g}"
        flags = {
            "checkpoint": self.initial_weights(),
            "data": unpack(self.data / "ccp8.zip", self.out),
            "channels": 64,
            "steps": 1000,
            "batch-size": 8,
            "crop": 96,
            "scale": (0.5, 1.5),
            "lr": self.lr,
            "head-lr": 0.05 / self.lr,
            "seeds": self.seeds,
            "out": sweep,
        }
        tool("seg_transfer", "pspnet", flags)
        self.keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(sweep / "table.json", self.keep / f"lr-{self.lr:g}.json")
        title = f"PSPNet on ccp8, backbone's learning rate {self.lr:g}"
        draw_classes(sweep, "iou_per_class", "IoU, %", title, self.keep / f"lr-{self.lr:g}.png")


@dataclass(frozen=True, kw_only=True)
class Detect(FromInitialWeights):
    """Faster R-CNN on blood cells (bccd), from random, supervised and distilled weights."""

    backend: Literal["detectron2", "torchvision"]
    """The library of the detector and the training loop."""
    keep: Path = STUDIES / "detect"
    """Folder of the tables."""
    lr: float = 0.01
    """Learning rate of all weights."""
    size: int = 240
    """Short side of the photographs, pixels; their aspect ratio is 4:3."""
    measure: Literal["test", "val"] = "test"
    """Split to evaluate on: val to choose a learning rate, test to report."""

    def run(self) -> None:
        name = f"{self.backend}-{self.size}px-{self.measure}-lr-{self.lr:g}"
        sweep = self.out / f"detect-{name}"
        flags = {
            "backend": self.backend,
            "checkpoint": self.initial_weights(),
            "data": unpack(self.data / "bccd.zip", self.out) / "BCCD",
            "layout": "voc",
            "splits": ("train", self.measure),
            "on-bad-box": "skip",
            "fpn-dim": 64,
            "box-dim": 256,
            "rois": 64,
            "anchor-scale": 7 * self.size / 160,
            "train-sizes": self.size,
            "test-size": self.size,
            "max-size": 2 * self.size,
            "steps": 256,
            "batch-size": 4,
            "warmup": 50,
            "lr": self.lr,
            "seeds": self.seeds,
            "out": sweep,
        }
        tool("det_transfer", "faster-rcnn-fpn", flags)
        self.keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(sweep / "table.json", self.keep / f"{name}.json")
        title = f"Faster R-CNN of {self.backend} on bccd"
        draw_classes(sweep, "ap_per_class", "AP, %", title, self.keep / f"{name}.png")
        rows = json.loads((sweep / "table.json").read_text())["rows"]
        best = max(rows.values(), key=lambda row: row["mean"])
        from PIL import Image  # noqa: PLC0415  # drawn only at the end of a study

        with Image.open(sweep / best["runs"][0] / "figures" / "sheet.png") as sheet:
            sheet.convert("RGB").reduce(2).save(self.keep / f"{name}-sheet.jpg", quality=85)


def draw_classes(sweep: Path, per_class: str, label: str, title: str, file: Path) -> None:
    """Draw bars of a metric per class and net: the mean over the seeds, with a mark for each seed."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # drawn only at the end of a study

    from stillroom.runs.figures import save  # noqa: PLC0415

    table = json.loads((sweep / "table.json").read_text())
    metric, rows = table["metric"], table["rows"]
    figure = Figure(figsize=(9, 3.5))
    axes = figure.add_subplot(ylabel=label, title=title)
    for index, (net, row) in enumerate(rows.items()):
        by_class = row[per_class]
        left = [number + 0.2 * index for number in range(len(by_class))]
        means = [100 * statistics.mean(values) for values in by_class.values()]
        axes.bar(left, means, 0.18, label=f"{Path(net).parent.name or net}: {metric} {100 * row['mean']:.1f} %")
        for x, values in zip(left, by_class.values(), strict=True):
            axes.plot([x] * len(values), [100 * value for value in values], "k_", markersize=4)
    axes.set_xticks([number + 0.3 for number in range(len(by_class))], list(by_class))
    axes.legend(fontsize=8)
    save(figure, file)


def supervise(out: Path, imagenette: Path, recipe: Flags) -> None:
    """Train ResNet-20 with Imagenette's labels."""
    net = {"checkpoint": "random:cifar/resnet20", "crop-fraction": 1}
    data = {"train": imagenette / "train", "test": imagenette / "val", "held-out": 0}
    run_or_resume("cls_transfer", "scratch", out, {**recipe, **net, **data})


def photographs(data: Path, out: Path) -> tuple[Path, Path, Path]:
    """Unpack Imagenette and CIFAR-10 and import the teacher, all into `out`; returns their folders."""
    imagenette, cifar = (unpack(data / f"{name}.zip", out) for name in ("imagenette128", "cifar10_jpeg"))
    teacher = out / "teacher"
    if not teacher.exists():
        flags = {
            "out": teacher,
            "source": "timm",
            "backbone": "timm/mobilenetv2_100",
            "arguments": "pad_type=same",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "size": 128,
            "crop-fraction": 1,
            "licence": "Apache-2.0",
        }
        tool("checkpoint", "import", data / "teacher_mobilenetv2_imagenet.safetensors", flags)
    return imagenette, cifar, teacher


def run_or_resume(name: str, preset: str, out: Path, *parts: object) -> None:
    """Run a tool unless its results exist; resume a run that was stopped."""
    if (out / "results.json").exists():
        return
    if (out / "config.json").exists():
        tool(name, "resume", out)
    else:
        tool(name, preset, {"out": out}, *parts)


def tool(name: str, *parts: object) -> None:
    """Run one of our scripts.

    Args:
        name: of the script, without .py.
        parts: of its command line, in order: words, and dictionaries of flags.

    Raises:
        ValueError: the script failed; it has printed why.
    """
    words: list[object] = []
    for part in parts:
        if isinstance(part, Mapping):
            for flag, value in part.items():
                words += [f"--{flag}", *(value if isinstance(value, (tuple, list)) else (value,))]
        else:
            words.append(part)
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, words)]
    print("$", " ".join(command[1:]), flush=True)
    if subprocess.run(command).returncode != 0:
        raise ValueError(f"{name}.py failed: start the study again to resume from there")


def unpack(archive: Path, out: Path) -> Path:
    """Unpack an archive unless its folder exists; returns the folder.

    Raises:
        ValueError: the archive is missing.
    """
    if not archive.exists():
        raise ValueError(f"there is no {archive}: pass the folder that docs/results.md describes as --data")
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
        "kdep-imagenette": KdepImagenette,
        "methods": Methods,
        "finetune": Finetune,
        "segment": Segment,
        "detect": Detect,
    }
    tyro.extras.subcommand_cli_from_dict(studies, description=__doc__).run()


if __name__ == "__main__":
    main()
