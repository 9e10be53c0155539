"""alignment.safetensors: an aligned target with the record of what it was fitted on."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cattrs
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from stillroom.backbone.files import write_file
from stillroom.distill.alignment import AlignedTarget, PowerTemperatureScaling, SvdAlignment, fix_signs
from stillroom.distill.config import Alignment, SvdPts

FORMAT = "stillroom-alignment/1"


@dataclass(frozen=True, kw_only=True)
class AlignmentInputs:
    """What an alignment was fitted on. Two fits with equal inputs give the same alignment, so one can stand for both.

    Args:
        teacher_sha256: hash of the teacher's weights; None for imported files, which do not say.
        feature: `before` or `after` the last activation; None likewise.
        teacher_size: input side, pixels; None likewise.
        data_fingerprint: of the images; None likewise.
        count: images seen; 0 likewise.
    """

    teacher_sha256: str | None
    feature: str | None
    teacher_size: int | None
    data_fingerprint: str | None
    count: int


def encode_alignment(target: AlignedTarget, inputs: AlignmentInputs) -> bytes:
    """The bytes of an alignment file."""
    scaling = target.scaling
    record = {
        "format": FORMAT,
        "inputs": asdict(inputs),
        "rank": target.svd.rank_,
        "zero_fill": target.svd.zero_fill,
        "std_ratio": target.std_ratio_,
        "pts": None if scaling is None else {"temperature": scaling.temperature, "exponent": scaling.exponent},
    }
    tensors = {
        "mean": target.svd.mean_,
        "basis": target.svd.basis_,
        "variance": target.svd.variance_,
        "scale": target.scale_,
    }
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"record": json.dumps(record)})


def load_alignment(file: Path) -> tuple[AlignedTarget, AlignmentInputs]:
    """Read an alignment file.

    Raises:
        ValueError: missing, damaged or foreign file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            record = json.loads((opened.metadata() or {})["record"])
            tensors = {name: opened.get_tensor(name) for name in ("mean", "basis", "variance", "scale")}
        inputs = cattrs.structure(record["inputs"], AlignmentInputs)
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{file} is no alignment file: {error!r}") from error
    svd = SvdAlignment(tensors["basis"].shape[1], zero_fill=record["zero_fill"])
    svd.rank_ = record["rank"]
    svd.restore(tensors["mean"], tensors["basis"], tensors["variance"])
    target = AlignedTarget(svd, PowerTemperatureScaling(**record["pts"]) if record["pts"] else None)
    target.scale_.copy_(tensors["scale"])
    target.std_ratio_ = tuple(record["std_ratio"])
    return target, inputs


def fits(target: AlignedTarget, config: Alignment, dim: int) -> bool:
    """Whether an alignment is what `config` asks for, apart from what it was fitted on."""
    pts = (config.temperature, config.exponent) if isinstance(config, SvdPts) else None
    own = (target.scaling.temperature, target.scaling.exponent) if target.scaling else None
    return (target.dim, target.svd.zero_fill, own) == (config.dim or dim, config.zero_fill, pts)


def import_kdep_alignment(
    basis_file: Path, mean_file: Path, out: Path, *, config: Alignment, dim: int, std_file: Path | None = None
) -> None:
    """Turn KDEP's published `*_v.npy` and `*_feat_mean.npy` into an alignment file.

    Their basis is the V of `torch.svd` of the centred features: (D, D), one component per column. The files carry no
    scale: it is set to 1, so that the target is KDEP's own. They do not say which teacher they belong to either.

    Args:
        basis_file: (D, D) or (D, d).
        mean_file: (D,).
        out: file to write.
        config: SVD, or SVD + PTS with its temperature and exponent.
        dim: components to keep, d.
        std_file: singular values (D,), if published; only the variances shown are taken from it.

    Raises:
        ValueError: files that are missing, hold pickled objects, or do not fit together.
    """
    basis, mean = _load_array(basis_file), _load_array(mean_file)
    if basis.ndim != 2 or mean.shape != (basis.shape[0],):
        raise ValueError(
            f"{basis_file} {basis.shape} and {mean_file} {mean.shape} do not fit: expected (D, D) and (D,)"
        )
    if not 0 < dim <= basis.shape[1]:
        raise ValueError(f"{basis_file} has {basis.shape[1]} components, {dim} were asked for")
    gram = basis[:, :dim].T.astype(np.float64) @ basis[:, :dim]
    if np.abs(gram - np.eye(dim)).max() > 1e-3:
        raise ValueError(f"the columns of {basis_file} are not orthonormal: expected the V of an SVD")
    svd = SvdAlignment(dim)
    svd.rank_ = dim
    spread = np.ones(len(mean)) if std_file is None else _load_array(std_file).astype(np.float64) ** 2
    chosen = torch.from_numpy(basis[:, :dim].copy())
    svd.restore(torch.from_numpy(mean), fix_signs(chosen), torch.from_numpy(spread))
    pts = PowerTemperatureScaling(config.temperature, config.exponent) if isinstance(config, SvdPts) else None
    unknown = AlignmentInputs(teacher_sha256=None, feature=None, teacher_size=None, data_fingerprint=None, count=0)
    write_file(out, encode_alignment(AlignedTarget(svd, pts), unknown))


def _load_array(file: Path) -> np.ndarray:
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no array file (read with allow_pickle=False): {error}") from error
