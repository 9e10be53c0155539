"""The images that a run trains on, selects weights by, and is tested on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stillroom.cls_transfer.config import ClassifyConfig, check_sources
from stillroom.cls_transfer.datasets import Splits, TaskSource, read_task
from stillroom.images import Source, read_labelled
from stillroom.images.files import shuffled_by_class
from stillroom.images.source import count_shared
from stillroom.runs import Run
from stillroom.runs.results import DatasetRecord


@dataclass(frozen=True)
class Sets:
    """Labelled images of the same classes.

    Attributes:
        train: training images.
        val: images to select weights by; None: the last weights are kept.
        test: test images, read once.
        words: their description, for the protocol id.
        in_train: by role, how many of the other images are training images too, byte for byte; empty: not compared.
    """

    train: Source
    val: Source | None
    test: Source
    words: str
    in_train: Mapping[str, int] = field(default_factory=dict)

    @property
    def by_role(self) -> dict[str, Source]:
        """The sets that a run has, by role."""
        return {"train": self.train, "test": self.test} | ({} if self.val is None else {"val": self.val})

    @property
    def records(self) -> dict[str, DatasetRecord]:
        """The records of the sets, by role; how many images are broken is not known yet."""
        return {role: files.record() for role, files in self.by_role.items()}


def compare(sets: Sets) -> Sets:
    """Count the images that are training images too, and warn of them."""
    others = {role: files for role, files in sets.by_role.items() if role != "train"}
    return replace(sets, in_train={r: count_shared(sets.train, f, f.root) for r, f in others.items()})


def read_sets(config: ClassifyConfig, run: Run) -> Sets:
    """Read the images of a single run.

    Raises:
        ValueError: see `read_labelled` and `read_task`; a single class; a part that leaves a class no image.
    """
    splits = read_splits(config, run)
    train = splits.train
    if len(train.classes) < 2:
        raise ValueError(f"{train.root} holds one class, {train.classes[0]}: at least two are needed")
    words = [splits.words]
    if config.fraction is not None or config.shots is not None:
        train = draw(train, config)
        words.append(f"fraction={config.fraction:g}" if config.fraction is not None else f"shots={config.shots}")
    val: Source | None = None
    if config.choose == "best-on-test":
        val = splits.test
    elif config.val is not None:
        val = read_labelled(config.val, train.classes, config.columns)
        words.append("val")
    elif config.held_out:
        train, val = hold_out(train, config)
        words.append(f"held-out={config.held_out:g}")
    return Sets(train, val, splits.test, " ".join(filter(None, words)))


def read_splits(config: ClassifyConfig, run: Run) -> Splits:
    """Read all training and test images, before a part is drawn or held out.

    Raises:
        ValueError: see `check_sources`, `read_labelled` and `read_task`.
    """
    check_sources(config)
    if config.tasks:
        (task,) = config.tasks
        assert config.data is not None
        source = TaskSource(
            data=config.data,
            run=run,
            seed=config.seed,
            dtd_split=config.dtd_split,
            per_class=config.caltech_per_class,
            first=config.caltech_first,
            partial=config.partial,
            download=config.download,
        )
        return read_task(task, source)
    assert config.train is not None and config.test is not None
    train = read_labelled(config.train, columns=config.columns)
    return Splits(train, read_labelled(config.test, train.classes, config.columns), "")


def draw(files: Source, config: ClassifyConfig) -> Source:
    """Draw a part of each class by the seed; a smaller part is contained in a larger one.

    Raises:
        ValueError: a fraction outside (0, 1], more images than a class has, or both settings at once.
    """
    if config.fraction is not None and config.shots is not None:
        raise ValueError("--fraction and --shots both limit the training images: pass one of them")
    if config.fraction is not None and not 0 < config.fraction <= 1:
        raise ValueError(f"--fraction is {config.fraction}: it must lie in (0, 1]")
    drawn: list[int] = []
    for label, order in shuffled_by_class(files.labels or (), config.seed).items():
        if config.fraction is not None:
            count = max(1, round(config.fraction * len(order)))
        else:
            assert config.shots is not None, "one of the two was passed"
            count = config.shots
            if not 1 <= count <= len(order):
                raise ValueError(f"class {files.classes[label]} has {len(order)} images, --shots is {count}")
        drawn += order[:count]
    return files.subset(sorted(drawn))


def hold_out(files: Source, config: ClassifyConfig) -> tuple[Source, Source]:
    """Split off a fraction of each class to select weights by, with at least one image of the class on either side.

    Raises:
        ValueError: a class with one image.
    """
    held_out: list[int] = []
    for label, order in shuffled_by_class(files.labels or (), config.seed).items():
        if len(order) < 2:
            raise ValueError(
                f"class {files.classes[label]} has one training image, so none can be held out: "
                f"pass --held-out 0, or --val"
            )
        held_out += order[-min(max(1, round(config.held_out * len(order))), len(order) - 1) :]
    rest = sorted(set(range(len(files))) - set(held_out))
    return files.subset(rest), files.subset(sorted(held_out))
