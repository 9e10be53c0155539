"""From what a run asks for to the features it is measured on."""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from torch import nn

from stillroom.backbone import (
    Backbone,
    ImageFiles,
    Run,
    load_backbone,
    read_labelled,
    read_unlabelled,
    replace_input,
)
from stillroom.backbone.checkpoint import load_heads
from stillroom.backbone.heads import build_head
from stillroom.backbone.image_files import shuffled_by_class
from stillroom.backbone.manifest import read_manifest
from stillroom.backbone.names import is_checkpoint
from stillroom.backbone.results import DatasetRecord
from stillroom.backbone.run import seed_everything
from stillroom.eval_ssl.config import FeatureConfig, FeaturesConfig, KnnConfig, LinearConfig
from stillroom.eval_ssl.features import FeatureSet, extract_features


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A net, and what it makes of the images; where one folder is measured by itself `test` is None."""

    backbone: Backbone
    head: nn.Module | None
    train: FeatureSet
    test: FeatureSet | None
    datasets: dict[str, DatasetRecord]

    @property
    def asked(self) -> FeatureSet:
        """The images to classify."""
        return self.train if self.test is None else self.test

    @property
    def classes(self) -> tuple[str, ...]:
        """Of both sets, by class number."""
        return self.train.files.classes

    @property
    def broken(self) -> list[str]:
        """The sentences about images that could not be read."""
        return [*self.train.broken, *(() if self.test is None else self.test.broken)]


def read_sets(config: FeatureConfig) -> tuple[ImageFiles, ImageFiles | None]:
    """The images whose labels are known and those to classify, or as many of them as `--limit` lets through.

    Raises:
        ValueError: see `read_labelled`; one class alone, where something is to be told apart.
    """
    if isinstance(config, FeaturesConfig) and not config.labels:
        train, test = read_unlabelled(config.train), None if config.test is None else read_unlabelled(config.test)
    else:
        train = read_labelled(config.train)
        if len(train.classes) < 2 and not isinstance(config, FeaturesConfig):
            raise ValueError(f"{config.train} holds one class, {train.classes[0]}: there is nothing to tell apart")
        test = None if config.test is None else read_labelled(config.test, train.classes)
    train, test = draw(train, config), None if test is None else draw(test, config)
    if isinstance(config, KnnConfig) and test is None and len(train) < 2:
        raise ValueError(f"leave-one-out needs two images, {config.train} gives one")
    return train, test


def draw(files: ImageFiles, config: FeatureConfig) -> ImageFiles:
    """As many of the images as `--limit` lets through, of all classes alike."""
    if config.limit is None:
        return files
    drawn = shuffled_by_class(files.labels or [0] * len(files), config.seed).values()
    by_turns = [place for places in zip_longest(*drawn) for place in places if place is not None]
    return files.subset(sorted(by_turns[: config.limit]))


def extract_sets(config: FeatureConfig, run: Run, train_files: ImageFiles, test_files: ImageFiles | None) -> Frozen:
    """The features of both sets, of the run's one checkpoint."""
    seed_everything(config.seed)
    (name,) = config.checkpoint
    backbone = load_backbone(name, config.feature).to(run.device)
    backbone = replace_input(backbone, size=config.size, crop_fraction=config.crop_fraction)
    head = load_head(name, config.head).to(run.device) if config.head else None
    levels = (config.level, *(config.more_levels if isinstance(config, LinearConfig) else ()))
    train, test = (
        None
        if files is None
        else extract_features(
            backbone, files, run, batch_size=config.batch_size, workers=config.workers, on_broken=config.on_broken,
            head=head, levels=levels, keep=config.cache, label=label,
        )
        for label, files in (("train", train_files), ("test", test_files))
    )  # fmt: skip
    assert train is not None, "there is always something to learn from"
    datasets = {"train": DatasetRecord.of(train_files, broken=len(train.broken))}
    if test_files is not None and test is not None:
        datasets["test"] = DatasetRecord.of(test_files, broken=len(test.broken))
    return Frozen(backbone=backbone, head=head, train=train, test=test, datasets=datasets)


def load_head(checkpoint: str, name: str) -> nn.Module:
    """The head that a checkpoint keeps under this name.

    Raises:
        ValueError: a backbone name instead of a checkpoint; `CheckpointError` where it keeps no such head.
    """
    if not is_checkpoint(checkpoint):
        raise ValueError(f"--head {name}: {checkpoint} is no checkpoint directory, so it keeps no head")
    tensors = load_heads(checkpoint, name)
    return build_head(read_manifest(Path(checkpoint) / "manifest.json").heads[name], tensors)


def describe(config: FeatureConfig, frozen: Frozen) -> str:
    """The part of the protocol id that says what the features are, and of which images."""
    spec = frozen.backbone.spec
    parts = [
        f"feature={spec.feature} size={spec.input.size} crop={spec.input.crop_fraction:g}",
        f"resize={spec.input.resize.replace(' ', '-')} dtype=float32",
        f"level={config.level}" if config.level is not None else "",
        f"head={config.head}" if config.head else "",
        f"limit={config.limit}" if config.limit else "",
    ]
    return " ".join(part for part in parts if part)
