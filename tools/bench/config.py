"""Settings of the benchmarks. Nothing here imports torch, so that --help and a wrong flag answer at once."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Projection:
    """Fit an SVD alignment: streamed moments and eigh, against torch.linalg.svd of the gathered, centred features."""

    n: int = 131072
    """Number of images."""
    d: int = 2048
    """Dimensions of the feature."""
    dim: int = 512
    """Components kept."""
    batch: int = 64
    """Features per update, as they come from a teacher."""
    repeats: int = 3
    """Pairs of runs, interleaved."""


@dataclass(frozen=True)
class Step:
    """SimReg's step, ResNet-50 -> ResNet-18 with the 4-layer head, against a plain loop from the same weights.

    The reference does what a first version of such a loop does: float32, contiguous, eager, the loss read back at every
    step.
    """

    batch: int = 32
    """Images per step."""
    size: int = 224
    """Input side of both nets, pixels."""
    steps: int = 10
    """Pairs of steps, interleaved; before each pair both students get the same weights."""
    amp: bool = False
    """Run ours in bf16 autocast."""
    compile: bool = False
    """Run ours compiled."""
    device: str | None = None
    """Device of both; None: CUDA if there is one, else the CPU."""


@dataclass(frozen=True)
class Loader:
    """The loader with one worker, to normalised float batches, against torchvision's ImageFolder with v1 transforms.

    KDEP's view, and SimReg's pair: the strong view for the student, the weak one for the teacher.
    """

    images: Path | None = None
    """Folder of JPEG files; None: 512 crops of 500 x 375 px from the two photographs that scikit-learn ships."""
    size: int = 224
    """Side of every view, pixels."""
    batch: int = 32
    """Images per batch."""
    pil_blur: bool = False
    """The reference blurs by Pillow's three box filters, as SimReg's code does, not by torchvision's GaussianBlur."""
    repeats: int = 5
    """Passes over the images, interleaved."""


@dataclass(frozen=True)
class Cache:
    """An epoch with a filled cache against a live one, ResNet-50 -> ResNet-18, through the whole trainer."""

    images: int = 256
    """Generated images, 256 px, read from disk."""
    teacher_size: int = 224
    """Input side of the teacher, pixels."""
    student_size: int = 64
    """Input side of the student, pixels."""
    batch: int = 16
    """Images per step."""
    repeats: int = 3
    """Pairs of epochs, interleaved."""


@dataclass(frozen=True)
class Monitor:
    """A run with the monitors at their defaults against the same run without, ResNet-20 at 32 px, cached teacher.

    No other step is as cheap, so the monitors' share of the time is at its largest.
    """

    images: int = 3200
    """Generated images, 256 px."""
    epochs: int = 5
    """Passes over the images; by default the monitors measure once in five."""
    repeats: int = 3
    """Pairs of runs, interleaved."""


@dataclass(frozen=True)
class Knn:
    """k nearest neighbours by cosine: our two backends, faiss's exact search alone, scikit-learn's brute force."""

    n: int = 200_000
    """Training features."""
    d: int = 512
    """Dimensions of a feature."""
    queries: int = 10_000
    """Test features."""
    k: int = 200
    """Number of neighbours."""
    repeats: int = 3
    """Rounds; each runs all searches in turn."""
    sklearn_queries: int = 1_000
    """Test features for scikit-learn, whose seconds are scaled up."""


@dataclass(frozen=True)
class Linear:
    """A grid of linear probes on stored features: one matrix, the points one by one, a DataLoader loop for each."""

    n: int = 50_000
    """Number of features."""
    d: int = 512
    """Dimensions of a feature."""
    classes: int = 100
    """Number of classes."""
    points: int = 16
    """Points of the grid."""
    epochs: int = 2
    """Passes over the features; each costs the same."""
    batch: int = 256
    """Features per step."""
    repeats: int = 3
    """Rounds; each runs all three in turn."""
    loops: int = 1
    """Points that the plain loop trains; its seconds are scaled up."""


@dataclass(frozen=True)
class Finetune:
    """ResNet-18 from random weights, trained and tested, against a plain torchvision script: same recipe and seeds.

    The reference does what such a script does: float32, contiguous, the loss read back at every step, nothing saved.
    """

    data: Path | None = None
    """Folder of image folders train/ and val/ with the same classes; None: toy images of 16 classes are drawn."""
    images: int = 1600
    """Toy images to train on."""
    size: int = 64
    """Input side, pixels."""
    epochs: int = 12
    """Passes over the data."""
    batch: int = 32
    """Images per step."""
    lr: float = 0.05
    """Learning rate of SGD with momentum and a cosine schedule by step."""
    repeats: int = 3
    """Pairs of runs, interleaved, each with its own seed."""


@dataclass(frozen=True)
class Seg:
    """FCN on ResNet-18, undilated, generated images: our backbone, sampler, views and hooks against MMSegmentation's.

    No dilation, rotation or blur, so that both compute the same: our dilation covers convolutions that MMSegmentation's
    leaves out, and MMSegmentation's own recipes have no blur.
    """

    pairs: int = 60
    """Steps of each side, interleaved."""
    warmup: int = 4
    """Steps of each side that are not counted."""
    crop: int = 96
    """Side of training crops, pixels."""
    batch: int = 8
    """Images per step."""


@dataclass(frozen=True)
class Det:
    """Faster R-CNN on ResNet-18 with FPN, generated images: our loader and hooks against Detectron2's own."""

    pairs: int = 40
    """Steps of each side, interleaved."""
    warmup: int = 3
    """Steps of each side that are not counted."""
    side: int = 128
    """Side of the images, pixels."""
    batch: int = 4
    """Images per step."""


@dataclass(frozen=True)
class Startup:
    """Processor seconds of commands, each in a new interpreter, interleaved with `import torch`."""

    root: Path = Path(__file__).parents[2]
    """The checkout whose tools are run, for instance one of an older commit."""
    repeats: int = 3
    """Rounds; each runs all commands in turn."""


@dataclass(frozen=True)
class Listing:
    """From a list of many files to the first batch of a run, against a tuple of paths."""

    num_images: int = 1_000_000
    """Files in the list, hard links of a few images."""
    folder: Path | None = None
    """Where the files are made, and deleted. None: the folder for temporary files."""
    root: Path = Path(__file__).parents[2]
    """The checkout whose code is run."""
