"""Images with boxes in the form that torchvision's detectors take."""

import os
from functools import partial
from typing import Any

import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from stillroom.backbone import InputSpec
from stillroom.backbone.flags import Workers
from stillroom.backbone.seeds import mix_seed
from stillroom.det_transfer.annotations import AnnotatedImage, Images
from stillroom.det_transfer.config import DetectConfig
from stillroom.images import BrokenImageError
from stillroom.images.decode import load_image
from stillroom.images.loaders import EvaluationBatches, TrainingBatches, begin_worker
from stillroom.runs import Run
from stillroom.runs.hardware import choose_workers

Target = dict[str, Tensor]
Sample = tuple[int, Tensor, Target]


class BoxedImages(Dataset[Any]):
    """Image files with their boxes, flipped at random in training: a pure function of the seed and (epoch, index).

    Args:
        images: the images to read.
        spec: the backbone's input, for its channel order.
        seed: of the augmentation; None: no augmentation.
        masks: whether to return the masks too.
    """

    def __init__(self, images: Images, spec: InputSpec, *, seed: int | None = None, masks: bool = False) -> None:
        self.images, self.seed, self.masks = images, seed, masks
        self.bgr = spec.channel_order == "bgr"
        self.view = v2.Compose([v2.ToImage(), *([] if seed is None else [v2.RandomHorizontalFlip()])])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Sample | str:
        epoch, index = key
        row = self.images.rows[index]
        try:
            image = load_image(row.file)
        except BrokenImageError as error:  # the main process raises it, without a worker's traceback around it
            return str(error)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(self.seed or 0, epoch, index))
            pixels, target = self.view(image, target_of(row, self.masks))
        plain = {name: tensor.as_subclass(Tensor) for name, tensor in target.items()}
        pixels = pixels.as_subclass(Tensor)
        return index, pixels.flip(0) if self.bgr else pixels, plain


def target_of(row: AnnotatedImage, masks: bool) -> dict[str, Any]:
    """The boxes, labels and masks of an image; labels start at 1, because 0 is torchvision's background."""
    size = (row.height, row.width)
    boxes = torch.from_numpy(row.xyxy)
    target: dict[str, Any] = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),  # type: ignore[call-overload]
        "labels": torch.from_numpy(row.labels) + 1,
    }
    if masks:
        planes = [torch.from_numpy(rle.decode(box.mask)) for box in row.targets]
        target["masks"] = tv_tensors.Mask(torch.stack(planes) if planes else torch.zeros(0, *size, dtype=torch.uint8))
    return target


def build_train_loader(images: BoxedImages, config: DetectConfig, run: Run, start: int) -> DataLoader:
    """Build the loader of the batches from step `start` to the last one, each a list of samples.

    Args:
        images: to train on.
        config: batch size, steps, order, workers.
        run: this process.
        start: first step.

    Raises:
        ValueError: a batch larger than the data.
    """
    per_epoch = len(images) // config.batch_size
    epochs = -(-config.steps // per_epoch) if per_epoch else 1
    passes = (len(images), config.batch_size, epochs, config.seed)
    return build_loader(images, TrainingBatches(*passes, run, start=start, order=config.order), config.workers)


def build_evaluation_loader(images: BoxedImages, run: Run, workers: Workers) -> DataLoader:
    """Build the loader of every image once, in batches of one, split over the processes."""
    return build_loader(images, EvaluationBatches(len(images), 1, run), workers)


def build_loader(images: BoxedImages, batches: Any, workers: Workers) -> DataLoader:
    """Build a loader of lists of samples; it does not draw from the global random generator."""
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=choose_workers(workers),
        collate_fn=list,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(begin_worker, os.getpid()),
        generator=torch.Generator(),
    )
