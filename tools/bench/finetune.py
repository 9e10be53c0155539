"""The benchmark of cls_transfer: fine-tuning against a plain torchvision script, its time and its accuracy."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from make_toy_data import Settings, make_toy_data
from stillroom.backbone import read_results
from stillroom.cls_transfer import ClassifyConfig, finetune

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Finetune:
    """ResNet-18 from random weights, trained and tested, against a plain torchvision script: same recipe and seeds.

    The reference is what such a script does: float32, contiguous, the loss read back at every step, nothing saved.
    """

    data: Path | None = None
    """Folder of image folders train/ and val/ with the same classes; None: toy pictures of 16 classes are drawn."""
    images: int = 1600
    """Toy pictures to train on."""
    size: int = 64
    """Input side, pixels."""
    epochs: int = 12
    """Passes over the data."""
    batch: int = 32
    """Images per step."""
    lr: float = 0.05
    """Of SGD with momentum, cosine by step."""
    repeats: int = 3
    """Pairs of runs, interleaved, each with its own seed."""

    def figures(self) -> dict[str, Any]:
        """Seconds per epoch of both, of training alone and with all around it; their ratios; top-1 of each run."""
        with tempfile.TemporaryDirectory() as folder:
            data = self.data or draw(Path(folder) / "toy", self.images) / "objects"
            seconds: dict[str, list[float]] = {"ours": [], "reference": []}
            training: dict[str, list[float]] = {"ours": [], "reference": []}
            top1: dict[str, list[float]] = {"ours": [], "reference": []}
            for seed in range(self.repeats):
                out = finetune(self.config(data, Path(folder) / f"run-{seed}", seed))
                results = read_results(out)
                trained = (out / "state" / "last.pt").stat().st_mtime - (out / "config.json").stat().st_mtime
                training["ours"].append(trained / self.epochs)  # the writing of the states counted too
                top1["ours"].append(results.metrics["top1"])
                seconds["ours"].append(results.seconds / self.epochs)
                began = time.perf_counter()
                found, trained = self.plain_script(data, seed)
                top1["reference"].append(found)
                training["reference"].append(trained / self.epochs)
                seconds["reference"].append((time.perf_counter() - began) / self.epochs)
        return {
            "seconds_per_epoch": training,
            "seconds_per_epoch_with_all": seconds,
            "speedup": [b / a for a, b in zip(training["ours"], training["reference"], strict=True)],
            "speedup_with_all": [b / a for a, b in zip(seconds["ours"], seconds["reference"], strict=True)],
            "top1": top1,
            "top1_mean": {name: statistics.mean(values) for name, values in top1.items()},
            "top1_std": {name: statistics.stdev(values) for name, values in top1.items() if len(values) > 1},
        }

    def config(self, data: Path, out: Path, seed: int) -> ClassifyConfig:
        """The recipe, as cls_transfer takes it."""
        return ClassifyConfig(
            checkpoint=("random:torchvision/resnet18",), train=data / "train", test=data / "val", out=out, held_out=0.0,
            size=self.size, crop_fraction=1.0, min_scale=0.35, epochs=self.epochs, batch_size=self.batch,
            lrs=(self.lr,), seeds=(seed,),
        )  # fmt: skip

    def plain_script(self, data: Path, seed: int) -> tuple[float, float]:
        """The same recipe as people write it with torchvision; its top-1, and its seconds of training."""
        began = time.perf_counter()
        torch.manual_seed(seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        after = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        crop = v2.RandomResizedCrop(self.size, scale=(0.35, 1.0))
        train = ImageFolder(data / "train", v2.Compose([crop, v2.RandomHorizontalFlip(), *after]))
        test = ImageFolder(data / "val", v2.Compose([v2.Resize(self.size), v2.CenterCrop(self.size), *after]))
        loader = DataLoader(train, self.batch, shuffle=True, drop_last=True, num_workers=1)
        net = torchvision.models.resnet18(num_classes=len(train.classes)).to(device)
        optimizer = torch.optim.SGD(net.parameters(), self.lr, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * len(loader))
        total = 0.0
        for _ in range(self.epochs):
            for images, labels in loader:
                loss = cross_entropy(net(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
        trained = time.perf_counter() - began
        net.eval()
        right = 0
        with torch.no_grad():
            for images, labels in DataLoader(test, self.batch, num_workers=1):
                right += int((net(images.to(device)).argmax(dim=1).cpu() == labels).sum())
        return right / len(test), trained


def draw(out: Path, num_train: int) -> Path:
    """Toy pictures of 64 px with labels."""
    counts = {"num_unlabelled": 1, "num_train": num_train, "num_heldout": 8, "num_val": 480, "num_scenes": 0}
    make_toy_data(Settings(out=out, size=64, **counts))
    return out
