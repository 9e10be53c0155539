"""cls_transfer's fine-tuning against a plain torchvision script: time and accuracy."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from bench.config import Finetune
from make_toy_data import Settings, make_toy_data
from stillroom.cls_transfer import ClassifyConfig, finetune
from stillroom.runs import read_results

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def figures(settings: Finetune) -> dict[str, Any]:
    """Seconds per epoch of both, of training alone and of the whole run; their ratios; top-1 of each run."""
    with tempfile.TemporaryDirectory() as folder:
        data = settings.data or draw(Path(folder) / "toy", settings.images) / "objects"
        seconds: dict[str, list[float]] = {"ours": [], "reference": []}
        training: dict[str, list[float]] = {"ours": [], "reference": []}
        top1: dict[str, list[float]] = {"ours": [], "reference": []}
        for seed in range(settings.repeats):
            out = finetune(build_config(settings, data, Path(folder) / f"run-{seed}", seed))
            results = read_results(out)
            trained = (out / "state" / "last.pt").stat().st_mtime - (out / "config.json").stat().st_mtime
            training["ours"].append(trained / settings.epochs)  # includes writing the states
            top1["ours"].append(results.metrics["top1"])
            seconds["ours"].append(results.seconds / settings.epochs)
            began = time.perf_counter()
            accuracy, trained = plain_script(settings, data, seed)
            top1["reference"].append(accuracy)
            training["reference"].append(trained / settings.epochs)
            seconds["reference"].append((time.perf_counter() - began) / settings.epochs)
    return {
        "seconds_per_epoch": training,
        "seconds_per_epoch_with_all": seconds,
        "speedup": [b / a for a, b in zip(training["ours"], training["reference"], strict=True)],
        "speedup_with_all": [b / a for a, b in zip(seconds["ours"], seconds["reference"], strict=True)],
        "top1": top1,
        "top1_mean": {name: statistics.mean(values) for name, values in top1.items()},
        "top1_std": {name: statistics.stdev(values) for name, values in top1.items() if len(values) > 1},
    }


def build_config(settings: Finetune, data: Path, out: Path, seed: int) -> ClassifyConfig:
    """The recipe as a config of cls_transfer."""
    return ClassifyConfig(
        checkpoint=("random:torchvision/resnet18",),
        train=data / "train",
        test=data / "val",
        out=out,
        held_out=0.0,
        size=settings.size,
        crop_fraction=1.0,
        min_scale=0.35,
        epochs=settings.epochs,
        batch_size=settings.batch,
        lrs=(settings.lr,),
        seeds=(seed,),
    )


def plain_script(settings: Finetune, data: Path, seed: int) -> tuple[float, float]:
    """Run the same recipe as a plain torchvision script; returns top-1 and seconds of training."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    normalise = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    crop = v2.RandomResizedCrop(settings.size, scale=(0.35, 1.0))
    train = ImageFolder(data / "train", v2.Compose([crop, v2.RandomHorizontalFlip(), *normalise]))
    test = ImageFolder(data / "val", v2.Compose([v2.Resize(settings.size), v2.CenterCrop(settings.size), *normalise]))
    loader = DataLoader(train, settings.batch, shuffle=True, drop_last=True, num_workers=1)
    net = torchvision.models.resnet18(num_classes=len(train.classes)).to(device)
    optimizer = torch.optim.SGD(net.parameters(), settings.lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * len(loader))
    total = 0.0
    for _ in range(settings.epochs):
        for images, labels in loader:
            loss = cross_entropy(net(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
    trained = time.perf_counter() - began
    net.eval()
    num_correct = 0
    with torch.no_grad():
        for images, labels in DataLoader(test, settings.batch, num_workers=1):
            num_correct += int((net(images.to(device)).argmax(dim=1).cpu() == labels).sum())
    return num_correct / len(test), trained


def draw(out: Path, num_train: int) -> Path:
    """Draw labelled toy images of 64 px."""
    counts = {"num_unlabelled": 1, "num_train": num_train, "num_heldout": 8, "num_val": 480, "num_scenes": 0}
    make_toy_data(Settings(out=out, size=64, **counts))
    return out
