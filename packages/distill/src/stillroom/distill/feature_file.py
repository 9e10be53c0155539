"""Teacher features that SimReg's code stored (`--teacher_feats`), read into the cache of teacher outputs."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from stillroom.backbone.atomic import write_file
from stillroom.backbone.tensor_files import load_tensors
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.teacher import FrozenTeacher
from stillroom.images import ImageDataset, Source, SourceError
from stillroom.images.loaders import Rendered
from stillroom.runs.store import Store

IMPORT = "import.json"
"""Where a store says which file its rows are from."""
_BLOCK = 4096  # rows
_COMPARED = 16  # images whose stored vectors are compared with the teacher's own
_SIMILAR = 0.95  # cosine; below, the file is hardly this teacher's, of this view


def read_feature_file(file: Path, files: Source, dim: int) -> tuple[list[Tensor], int]:
    """Read the vector of each image, in the order of the images, and count the vectors of other images.

    Args:
        file: a dict of image file name, without its folder -> vector, saved by torch.
        files: the images.
        dim: width of the teacher's output.

    Raises:
        ValueError: another format, images without a vector or with the same name, vectors of another width.

    Reference: SimReg (Navaneet et al., BMVC 2021), released code, which reads the file by the last part of each path.
    """
    features = load_tensors(file, advice="save a dict of image file name -> tensor by torch.save", mmap=True)
    if not isinstance(features, Mapping) or not all(isinstance(value, Tensor) for value in features.values()):
        raise ValueError(f"{file} holds no dict of image file name -> tensor, which SimReg's --teacher_feats is")
    names = [path.name for path in files.paths]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"{len(twice)} file names occur in several folders of {files.root}, the first is {twice[0]}: {file} knows "
            f"an image by its file name only, so that they would share a vector"
        )
    if absent := [name for name in names if name not in features]:
        raise ValueError(
            f"{file} has no vector for {len(absent)} of {len(names)} images, the first is {absent[0]}: pass the folder "
            f"that it was made of"
        )
    vectors = [features[name].flatten() for name in names]
    for name, vector in zip(names, vectors, strict=True):
        if len(vector) != dim:
            raise ValueError(f"{file} holds {len(vector)} numbers for {name}, the teacher's output has {dim}")
        if not bool(vector.isfinite().all()):
            raise ValueError(f"{file} holds numbers for {name} that are not finite")
    return vectors, len(features) - len(names)


@torch.no_grad()
def import_features(
    file: Path,
    store: Store,
    teacher: FrozenTeacher,
    align: AlignedTarget | None,
    dataset: ImageDataset,
    device: torch.device,
) -> None:
    """Fill a store from a file, and compare some rows with what the teacher computes of the same images.

    Args:
        file: see `read_feature_file`.
        store: one row per image.
        teacher: whose outputs the file is said to hold.
        align: applied to the vectors before they are stored; None: they are stored as they are.
        dataset: the images, in the teacher's view.
        device: of teacher and alignment.

    Raises:
        ValueError: see `read_feature_file`.
    """
    vectors, others = read_feature_file(file, dataset.files, teacher.dim)

    # Some vectors against the teacher's own.
    chosen = torch.linspace(0, len(vectors) - 1, min(_COMPARED, len(vectors))).long().tolist()
    similarities = []
    for index in chosen:
        views = dataset[0, index][1]
        if isinstance(views, SourceError):
            raise views
        if isinstance(views, str):
            continue  # a broken image, which training refuses, or names and counts
        assert isinstance(views, Rendered), "`dataset` has `Views`"
        live = teacher(views.pixels[0][None].to(device)).features[0].cpu()
        similarities.append(float(cosine_similarity(live, vectors[index].float(), dim=0)))
    similarity = sum(similarities) / len(similarities) if similarities else None

    # The record first: a store is complete only with its last row.
    record = {
        "file": str(file),
        "sha256": file_sha256(file),
        "images": len(vectors),
        "vectors_of_other_images": others,
        "cosine_to_teacher": similarity,
        "compared": len(similarities),
    }
    write_file(store.path / IMPORT, json.dumps(record, indent=2) + "\n")
    with store:
        for block in torch.arange(len(vectors)).split(_BLOCK):
            rows = torch.stack([vectors[index].float() for index in block.tolist()])
            store.write(block, rows if align is None else align(rows.to(device)))
    known = "none could be compared" if similarity is None else f"mean cosine {similarity:.4f} on {len(similarities)}"
    print(f"{file}: {len(vectors)} vectors imported, {others} of other images left out; to the teacher: {known}")
    if similarity is not None and similarity < _SIMILAR:
        print(
            f"warning: {file} hardly holds this teacher's features of the centre crop: compare --teacher, "
            f"--teacher.feature and the input that `stillroom-checkpoint inspect` prints",
            file=sys.stderr,
        )


def read_import(store: Store) -> dict[str, Any]:
    """The record that `import_features` left in a store."""
    return json.loads((store.path / IMPORT).read_text(encoding="utf-8"))


def file_sha256(file: Path) -> str:
    """The hash of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
