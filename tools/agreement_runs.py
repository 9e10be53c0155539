"""The runs of study_agreement.py: students of good and bad recipes, their k-NN accuracy and label-free metrics."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from stillroom.backbone.atomic import write_file
from stillroom.distill.agreement import neighbour_agreement
from stillroom.distill.cache import fill_cache
from stillroom.distill.config import Cache, DistillConfig, Monitor
from stillroom.distill.data import RunImages, split_held_out
from stillroom.distill.distances import distance
from stillroom.distill.presets import PRESETS
from stillroom.distill.setup import build_cache_pass, student_alignments
from stillroom.distill.student import StudentModel, build_optimizer, build_student, build_student_backbone
from stillroom.distill.teacher import build_teachers
from stillroom.distill.views import KdepView, Views
from stillroom.eval_ssl import knn_classify
from stillroom.eval_ssl.probe import split_stratified
from stillroom.images import EvaluationView, ImageDataset, Source, read_labelled
from stillroom.images.loaders import EvaluationBatches, TrainingBatches, View, build_loader
from stillroom.runs import Run
from stillroom.runs.figures import save
from stillroom.runs.results import format_table
from stillroom.runs.schedule import Cosine
from study import photographs

SIZE, SEED, NUM_VIEWS, NUM_NEIGHBOURS = 32, 100, 3, 20
MOMENTS = (0.1, 0.5, 1.0)  # fractions of the run after which a student is measured
RECIPES = [  # preset, loss weight, learning rate
    ("kdep", 0.3, 1), ("kdep", 30, 0.1), ("kdep", 0.3, 3), ("kdep", 0.1, 3), ("kdep", 3, 1), ("svd", 1, 1),
    ("svd", 100, 0.1), ("simreg", 0.3, 1), ("simreg", 1, 0.1), ("conv1x1", 1, 1), ("conv1x1", 1, 0.1),
]  # fmt: skip
METRICS = {
    "agreement": "agreement of the 10 nearest neighbours",
    "rsa": "rank correlation of similarities",
    "cka": "linear CKA",
    "r2": "explained variance, mean over components",
    "r2_first": "explained variance, first 8 components",
    "loss": "loss of the last 50 steps",
}


def measure_recipes(data: Path, scratch: Path, keep: Path) -> None:
    """Train the recipes that are not measured yet, print the correlations, and draw the scatter plot.

    Args:
        data: folder of the images and the teacher.
        scratch: folder of extracted images and scratch files.
        keep: folder of the measurements and the plot.
    """
    torch.set_num_threads(1)
    kept = keep / "measurements.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    done = {(row["preset"], row["loss_weight"], row["lr"]) for row in rows if row["at"] == 1}
    if left := [recipe for recipe in RECIPES if recipe not in done]:
        keep.mkdir(parents=True, exist_ok=True)
        world = World(data, scratch)
        for recipe in left:
            for row in world.train(*recipe):
                rows.append(row)
                write_file(kept, json.dumps(rows, indent=1) + "\n")
    print(correlate(rows))
    draw(rows, keep / "scatter.png")


def correlate(rows: list[dict[str, Any]]) -> str:
    """Table of Spearman's rank correlation of each metric with k-NN accuracy."""
    lines = []
    for name, words in METRICS.items():
        having = [row for row in rows if row.get(name) is not None]
        late = [row for row in having if row["step"] >= 200]
        ranks = [spearmanr([r["knn"] for r in some], [r[name] for r in some]).statistic for some in (having, late)]
        lines.append([words, *(f"{rank:.2f} ({len(some)})" for rank, some in zip(ranks, (having, late), strict=True))])
    return format_table(["metric without labels", "all measurements", "from 200 steps on"], lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw k-NN accuracy against two metrics, one colour per preset."""
    figure = Figure(figsize=(10, 4))
    untrained = next(row for row in rows if row["step"] == 0)
    for column, name in enumerate(("agreement", "loss"), 1):
        axes = figure.add_subplot(1, 2, column, xlabel=METRICS[name], ylabel="k-NN top-1, %")
        for preset in sorted({row["preset"] for row in rows}):
            some = [row for row in rows if row["preset"] == preset and row["step"]]
            axes.scatter([row[name] for row in some], [100 * row["knn"] for row in some], s=20, label=preset)
        axes.axhline(100 * untrained["knn"], color="grey", linewidth=0.8, linestyle="--", label="untrained")
    axes.legend(fontsize=8)
    save(figure, path)


class World:
    """Images, views and teacher outputs in memory, shared by all recipes."""

    def __init__(self, data: Path, out: Path) -> None:
        imagenette, _, self.teacher_checkpoint = photographs(data, out)
        self.out, self.run = out, Run(device=torch.device("cpu"))
        files = read_labelled(imagenette / "train")
        parts = split_stratified(torch.tensor(files.labels), 0.1, SEED, files.classes)
        self.fit, self.test = (files.subset(part.tolist()) for part in parts)
        self.trained, held_out = split_held_out(self.fit, 0.05, SEED)
        assert held_out is not None
        config = self.config("kdep", 1, 1)
        self.teachers = build_teachers(config.teacher.nets())
        [student] = [build_student_backbone(net, config.seed) for net in config.student.nets()]
        drawn, centre = Views(config.view, config.teacher_view, [SIZE], []), EvaluationView(student.spec.input)
        self.views = [
            self.read(self.trained, lambda image, generator: drawn(image, generator).pixels[0], epoch)
            for epoch in range(NUM_VIEWS)
        ]
        self.pixels, self.test_pixels = self.read(self.fit, centre), self.read(self.test, centre)
        self.held_out_pixels = self.read(held_out, centre)
        seen = self.read(held_out, EvaluationView(self.teachers[0].backbone.spec.input))
        self.teacher_features = torch.cat([self.teachers[0](part).features for part in seen.split(64)])

    def config(self, preset: str, loss_weight: float, lr: float) -> DistillConfig:
        """The config of a recipe's run."""
        teacher, student = (str(self.teacher_checkpoint),), ("cifar/resnet20",)
        base = PRESETS[preset](teacher=teacher, student=student, data=Path(), out=self.out / "scratch")
        return replace(
            base,
            teacher=replace(base.teacher, size=(128,), feature=("after",)),
            student=replace(base.student, size=(SIZE,), crop_fraction=(1.0,)),
            view=KdepView(min_scale=0.35),
            schedule=Cosine(),
            epochs=6,
            batch_size=64,
            lr=lr,
            loss_weight=loss_weight,
            weight_decay=5e-4,
            amp="bf16",
            seed=SEED,
            cache=Cache(views=NUM_VIEWS, keep="outputs"),
            monitor=Monitor(held_out=0.05),
        )

    def read(self, files: Source, view: View, epoch: int = 0) -> Tensor:
        """One view of every image: uint8 (n, 3, h, w)."""
        batches = EvaluationBatches(len(files), 64, self.run, epoch=epoch)
        return torch.cat([batch.images for batch in build_loader(ImageDataset(files, view, seed=SEED), batches, 1)])

    def train(self, preset: str, loss_weight: float, lr: float) -> Iterator[dict[str, Any]]:
        """Train a student by a recipe, in the order and on the views of a run with a cache; yields its measurements."""
        config = self.config(preset, loss_weight, lr)
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "alignment.safetensors").unlink(missing_ok=True)
        [backbone] = [build_student_backbone(net, config.seed) for net in config.student.nets()]
        images = RunImages(all=self.fit, train=self.trained, held_out=None)
        [(target, _)] = student_alignments(config, self.run, images, self.teachers, 0, backbone.spec.dim)
        student = build_student(
            backbone, self.teachers, [target.dim], head=config.head, dense=config.dense, seed=config.seed
        )
        cached = fill_cache(self.teachers[0], config.alignment, (target,), build_cache_pass(config, self.run, images))
        optimizer = build_optimizer(config.optimizer, [student], lr=config.lr, weight_decay=config.weight_decay)
        batches = TrainingBatches(len(self.trained), config.batch_size, config.epochs, config.seed, self.run)
        moments = {round(len(batches) * moment): moment for moment in MOMENTS}
        recipe = {"preset": preset, "loss_weight": loss_weight, "lr": lr}
        if (preset, loss_weight, lr) == RECIPES[0]:
            yield recipe | {"at": 0, "step": 0, "loss": None} | self.measure(student, None)
        losses: list[float] = []
        for step, keys in enumerate(batches, 1):
            epoch, indices = keys[0][0], torch.tensor([index for _, index in keys])
            with torch.autocast("cpu", torch.bfloat16):
                [prediction] = student(self.views[epoch % NUM_VIEWS][indices]).predictions
            with torch.no_grad():  # the root of PTS has an infinite slope at 0
                aligned = target(cached.read(epoch, indices))
            loss = distance(config.distance, prediction, aligned)
            for group in optimizer.param_groups:
                group["lr"] = lr * config.schedule.factor((step - 0.5) / batches.steps_per_epoch, config.epochs)
            (loss_weight * loss).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if step in moments:
                regressed = target if preset in ("kdep", "svd") else None
                recent = {"loss": sum(losses[-50:]) / len(losses[-50:])}
                yield recipe | {"at": moments[step], "step": step} | recent | self.measure(student, regressed)

    @torch.no_grad()
    def measure(self, model: StudentModel, target: torch.nn.Module | None) -> dict[str, float]:
        """k-NN accuracy and each metric; explained variance only if the feature itself regresses a target."""

        def features(pixels: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return torch.cat([model(part).pooled.float() for part in pixels.split(128)])

        model.eval()
        student, teacher = features(self.held_out_pixels), self.teacher_features
        measured = {
            "knn": self.knn_accuracy(features(self.pixels), features(self.test_pixels)),
            "agreement": neighbour_agreement(student, teacher),
            "rsa": rank_correlation(student, teacher),
            "cka": linear_cka(student, teacher),
        }
        if target is not None:
            targets = target(teacher)
            explained = 1 - (student - targets).square().mean(dim=0) / targets.var(dim=0, correction=0)
            measured |= {"r2": float(explained.mean()), "r2_first": float(explained[:8].mean())}
        model.train()
        return measured

    def knn_accuracy(self, fit: Tensor, test: Tensor) -> float:
        """k-NN top-1 of the held-out tenth, with neighbours from the other images; a fraction."""
        predicted = knn_classify(fit, torch.tensor(self.fit.labels), test, [NUM_NEIGHBOURS])[NUM_NEIGHBOURS]
        return float((predicted == torch.tensor(self.test.labels)).float().mean())


def rank_correlation(student: Tensor, teacher: Tensor) -> float:
    """Spearman's rank correlation of the cosines of all pairs of images (Kriegeskorte et al. 2008)."""
    upper = torch.ones(len(student), len(student)).triu(1).bool()
    pairs = [(F.normalize(f.double(), dim=1) @ F.normalize(f.double(), dim=1).T)[upper] for f in (student, teacher)]
    return float(spearmanr(*(p.numpy() for p in pairs)).statistic)


def linear_cka(student: Tensor, teacher: Tensor) -> float:
    """Centred kernel alignment of linear kernels (Kornblith et al., ICML 2019)."""
    a, b = ((f - f.mean(dim=0)).double() for f in (student, teacher))
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))
