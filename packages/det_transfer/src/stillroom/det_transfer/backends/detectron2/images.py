"""Images with boxes in Detectron2's format; their order and augmentation continue exactly when a run is resumed."""

import copy
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import check_image_size
from detectron2.data.transforms import AugInput
from detectron2.structures import BoxMode
from torch.utils.data import DataLoader, Dataset

from stillroom.backbone.seeds import mix_seed
from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData, read_data, refuse_broken
from stillroom.images import BrokenImageError
from stillroom.images.decode import load_image
from stillroom.images.loaders import TrainingBatches, begin_worker
from stillroom.runs import Run
from stillroom.runs.configs import load_config

Record = dict[str, Any]


def read_run(run: str) -> DetectionData:
    """Read the images of a run directory, by its config.json."""
    return read_data(load_config(Path(run), DetectConfig))


def read_records(run: str, part: str) -> list[Record]:
    """Read the images of a run directory in Detectron2's format: `part` is `train` or `val`."""
    data = read_run(run)
    return as_records(data.train if part == "train" else data.val)


def as_records(images: Images) -> list[Record]:
    """Convert images to Detectron2's format."""
    return [
        {
            "file_name": str(row.file),
            "image_id": row.id,
            "width": row.width,
            "height": row.height,
            "annotations": [
                {
                    "bbox": [box.x, box.y, box.x + box.width, box.y + box.height],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": box.label,
                    "iscrowd": 0,
                    **({} if box.mask is None else {"segmentation": box.mask}),
                }
                for box in row.targets
            ],
        }
        for row in images.rows
    ]


class PictureMapper(DatasetMapper):
    """Detectron2's mapper of boxes and masks, with the image reader of our packages: whole files, as 8-bit RGB.

    Detectron2's own reader clips 16-bit images at 255, puts transparent pixels on black, and names no broken file.
    """

    def __call__(self, dataset_dict: Record) -> Record:
        """Read an image and augment it with its boxes.

        Raises:
            BrokenImageError: it cannot be read, or is truncated.
        """
        record = copy.deepcopy(dataset_dict)
        pixels = np.asarray(load_image(Path(record["file_name"])))
        augmented = AugInput(pixels[:, :, ::-1] if self.image_format == "BGR" else pixels)
        check_image_size(record, augmented.image)
        transforms = self.augmentations(augmented)  # changes `augmented` in place
        record["image"] = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if self.is_train:
            self._transform_annotations(record, transforms, augmented.image.shape[:2])
        else:
            record.pop("annotations", None)
        return record


class SeededRecords(Dataset[Any]):
    """Mapped records whose augmentation is seeded by (seed, epoch, index); a broken image gives its error sentence.

    Args:
        records: in Detectron2's format.
        mapper: reads and augments a record.
        seed: of the run.
    """

    def __init__(self, records: Sequence[Record], mapper: Callable[[Record], Record], seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Record | str:
        epoch, index = key
        seed = mix_seed(self.seed, epoch, index)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            return self.mapper(self.records[index])
        except BrokenImageError as error:  # the main process raises it, without a worker's traceback around it
            return str(error)


class SeededLoader:
    """Batches of a run from step `start` to its last one, which depend on (seed, step) alone.

    Detectron2's own loader restarts its stream when a run is resumed, and groups images by their aspect ratio.

    Args:
        dataset: records.
        mapper: reads and augments a record.
        total_batch_size: over all processes.
        steps: in the whole run.
        seed: of order and augmentation.
        num_workers: processes that decode images.
        order: see `TrainingBatches`; 1 for runs whose config does not say.

    Raises:
        ValueError: a batch larger than the data; while iterating, an image that cannot be read.
    """

    def __init__(
        self,
        dataset: Sequence[Record],
        mapper: Callable[[Record], Record],
        total_batch_size: int,
        steps: int,
        seed: int,
        num_workers: int,
        order: Literal[1, 2] = 1,
    ) -> None:
        self.records = SeededRecords(dataset, mapper, seed)
        self.total_batch_size, self.steps, self.seed, self.num_workers = total_batch_size, steps, seed, num_workers
        self.order: Literal[1, 2] = order
        self.start = 0
        self.batches()  # refuses a batch larger than the data

    def batches(self) -> TrainingBatches:
        """The dataset keys of every step from `start` on."""
        per_epoch = len(self.records) // self.total_batch_size
        epochs = -(-self.steps // per_epoch) if per_epoch else 1
        parallel = torch.distributed.is_initialized()
        rank, world_size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if parallel else (0, 1)
        run = Run(device=torch.device("cpu"), rank=rank, world_size=world_size)
        passes = (len(self.records), self.total_batch_size, epochs, self.seed)
        return TrainingBatches(*passes, run, start=self.start, order=self.order)

    def __iter__(self) -> Iterator[list[Record]]:
        batches: Any = self.batches()
        loader = DataLoader(
            self.records,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=list,
            worker_init_fn=partial(begin_worker, os.getpid()),
            generator=torch.Generator(),
        )
        return map(refuse_broken, loader)
