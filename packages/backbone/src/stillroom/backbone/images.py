"""Images on disk, labelled or not, and how they become the tensors of an `InputSpec`."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from stillroom.backbone.spec import InputSpec

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})


class BrokenImageError(ValueError):
    """A file that should be an image and cannot be decoded."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files below one folder, in a fixed order; `labels` index `classes`, or are None where there are none."""

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over each file's relative path and size in bytes, in order: cheap, and blind to dates and copies."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}\n".encode())
        return digest.hexdigest()

    @cached_property
    def stamp(self) -> str:
        """SHA-256 over each file's path, size and date of change: of these very files, for caches on this machine."""
        digest = hashlib.sha256()
        for path in self.paths:
            status = path.stat()
            digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> "ImageFiles":
        """Some of the files, in the order of `indices`."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        return ImageFiles(self.root, tuple(self.paths[i] for i in indices), labels, self.classes)


def read_unlabelled(source: str | Path) -> ImageFiles:
    """Every image below a folder, whatever its subfolders mean, in the order of their paths; or those of a file list.

    A file list is a text file, one path per line, relative to the list's own folder or absolute; `#` begins a comment.

    Raises:
        ValueError: missing or empty folder or list, or listed files that are not there.
    """
    root = Path(source)
    if root.is_file():
        return _read_list(root)
    paths = tuple(sorted(_walk(_existing(root))))
    if not paths:
        raise ValueError(f"{root} holds no images (looked for {', '.join(sorted(EXTENSIONS))}, in subfolders too)")
    return ImageFiles(root, paths)


def _read_list(file: Path) -> ImageFiles:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no list of images: expected text with one path per line") from error
    paths = tuple(file.resolve().parent / line for line in lines if line and not line.startswith("#"))
    if not paths:
        raise ValueError(f"{file} lists no images")
    if absent := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{file} lists {len(absent)} files that are not there, the first is {absent[0]}")
    return listed(paths)


def listed(paths: Sequence[Path]) -> ImageFiles:
    """Files that no folder names: their root, from which the fingerprint counts, is the deepest that holds them all."""
    return ImageFiles(Path(os.path.commonpath([path.parent for path in paths])), tuple(paths))


def read_some(images: Path) -> ImageFiles:
    """One image, or those of a folder or of a file list; see `read_unlabelled`."""
    alone = images.is_file() and images.suffix != ".txt"
    return listed([images.resolve()]) if alone else read_unlabelled(images)


def picture_names(files: ImageFiles) -> list[Path]:
    """Where the PNG that is made of each image goes, below a folder.

    Raises:
        ValueError: two images would share one.
    """
    names = [file.relative_to(files.root).with_suffix(".png") for file in files.paths]
    if len({*names}) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"two images of {files.root} would share the picture {twice}: rename one of them")
    return names


def read_labelled(folder: str | Path, classes: Sequence[str] | None = None) -> ImageFiles:
    """An image folder: one subfolder per class, images in it.

    Args:
        folder: the folder of the class folders.
        classes: the expected classes (those of the training set), in label order; None takes what is there, sorted.

    Raises:
        ValueError: missing or empty folder, no class folders, images beside them, a class without images, classes that
            differ.
    """
    root = _existing(Path(folder))
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise ValueError(f"{root} holds no class folders: expected {root.name}/<class>/<image>")
    if loose := sorted(e.name for e in root.glob("[!.]*") if e.suffix.lower() in EXTENSIONS and e.is_file()):
        raise ValueError(f"{root} holds {len(loose)} images beside its class folders, the first is {loose[0]}")
    if classes is not None and set(found) != set(classes):
        lacks, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise ValueError(f"the classes of {root} differ from the training set's: missing {lacks}, extra {extra}")
    classes = tuple(classes) if classes is not None else tuple(found)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = sorted(_walk(root / name))
        if not members:
            raise ValueError(f"class folder {root / name} holds no images")
        paths += members
        labels += [label] * len(members)
    return ImageFiles(root, tuple(paths), tuple(labels), classes)


def shuffled_by_class(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    """The places of each class's images, in an order drawn from the seed and the class: its first ones are a draw."""
    places: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for place, label in enumerate(labels):
        places[label].append(place)
    return {
        label: np.random.default_rng([seed, label]).permutation(members).tolist() for label, members in places.items()
    }


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    return folder


def _walk(folder: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if Path(name).suffix.lower() in EXTENSIONS:
                yield Path(directory) / name


def load_image(path: Path) -> Image.Image:
    """Decode one image as 8-bit RGB, whatever its mode (grey, palette, CMYK, 16 bit, transparent over white).

    Raises:
        BrokenImageError: truncated, not an image, or larger than Pillow's decompression limit.
    """
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "truncated images must be found, not read as grey"
    try:
        with Image.open(path) as opened:
            opened.load()
            image: Image.Image = opened
            if image.mode.startswith("I;16") or image.mode == "I":
                return Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, "white")
                return Image.alpha_composite(ground, image).convert("RGB")
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BrokenImageError(f"{path} cannot be read as an image: {error}") from error


def is_turned(opened: Image.Image) -> bool:
    """Whether an image's EXIF tag turns it: some libraries obey the tag, others do not. Only the header is read."""
    if opened.format == "PNG" and "exif" not in opened.info:  # it may stand behind the pixels, where nobody looks
        return False
    return opened.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


class EvaluationView:
    """Resize and centre crop as an `InputSpec` says: PIL image -> uint8 (3, size, size)."""

    def __init__(self, spec: InputSpec) -> None:
        interpolation = v2.InterpolationMode(spec.interpolation)
        if spec.resize == "squash":
            steps: list[nn.Module] = [v2.Resize((spec.size, spec.size), interpolation, antialias=spec.antialias)]
        else:
            side = round(spec.size / spec.crop_fraction)
            steps = [v2.Resize(side, interpolation, antialias=spec.antialias), v2.CenterCrop(spec.size)]
        self.steps = v2.Compose([v2.PILToTensor(), *steps])

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        return self.steps(image)


def resize_batch(images: Shaped[Tensor, "b 3 h w"], size: int) -> Shaped[Tensor, "b 3 s s"]:
    """Bring square images to `size` px with an antialiased bilinear filter; nothing to do where they have it."""
    if images.shape[-1] == size and images.shape[-2] == size:
        return images
    return TF.resize(images, [size, size], antialias=True)


class Normalize(nn.Module):
    """uint8 RGB pixels, or floats in [0, 1], to what a net expects: channel order, value range, mean and std.

    Applied once, by the caller, on the device.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.flip = spec.channel_order == "bgr"
        self.low, high = spec.value_range
        self.span = high - self.low
        # float32 whatever the numbers are: NumPy's would make it float64
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        unit = images.float() / 255 if images.dtype == torch.uint8 else images
        if self.flip:
            unit = unit.flip(1)
        return (unit * self.span + self.low - self.mean) / self.std
