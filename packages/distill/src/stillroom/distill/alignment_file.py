"""alignment.safetensors: a student's aligned targets, one per teacher, with the record of what they were fitted on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import cattrs
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stillroom.backbone.atomic import refuse_missing, write_file
from stillroom.distill.alignment import AlignedTarget, ScaledSvd, fix_signs
from stillroom.distill.config import UNIONS
from stillroom.distill.factors import LdaAlignment, NmfAlignment
from stillroom.distill.selection import InterpolatedChannels, ProjectedChannels, SelectedChannels
from stillroom.distill.slots import Alignment, ChannelSelection, Interpolation, Lda, Nmf, RandomProjection, Raw, Svd
from stillroom.runs.configs import config_from_json, config_to_dict

FORMAT = "stillroom-alignment/2"


@dataclass(frozen=True, kw_only=True)
class AlignmentInputs:
    """What an alignment was fitted on. Fits with equal inputs give equal alignments, so one can replace the other.

    Imported files record none of this: their fields are None, and `count` is 0.

    Args:
        teacher_sha256: hash of the teacher's weights.
        feature: `before` or `after` the last activation.
        output: the teacher's output, see `Output`.
        teacher_size: input side, pixels.
        view: `evaluation`, or the training view and its seed.
        data_fingerprint: of the images.
        count: number of images.
    """

    teacher_sha256: str | None = None
    feature: str | None = None
    output: str | None = None
    teacher_size: int | None = None
    view: str | None = None
    data_fingerprint: str | None = None
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class _Holder:
    """Wraps the settings of an alignment, so that they are written as in config.json, with their `kind`."""

    alignment: Alignment


def build_alignment(config: Alignment, feature_dim: int, dim: int) -> AlignedTarget:
    """Build an aligned target, not fitted yet: (b, feature_dim) -> (b, d).

    Args:
        config: settings of the alignment.
        feature_dim: D.
        dim: d where `config` sets none: the student's width. `Raw` keeps D.

    Raises:
        ValueError: a target wider than the alignment can make it.
    """
    target_dim = feature_dim if isinstance(config, Raw) else config.dim or dim
    match config:
        case Raw():
            alignment: nn.Module = nn.Identity()
        case Svd():
            alignment = ScaledSvd(config, feature_dim, target_dim)
        case ChannelSelection(by=by):
            alignment = SelectedChannels(feature_dim, target_dim, by)
        case Interpolation():
            alignment = InterpolatedChannels(target_dim)
        case RandomProjection():
            alignment = ProjectedChannels(feature_dim, target_dim)
        case Nmf(sweeps=sweeps):
            alignment = NmfAlignment(feature_dim, target_dim, sweeps)
        case Lda():
            alignment = LdaAlignment(feature_dim, target_dim)
    return AlignedTarget(alignment, feature_dim, target_dim)


def encode_alignments(targets: Sequence[tuple[Alignment, AlignedTarget, AlignmentInputs]]) -> bytes:
    """Encode an alignment file, one entry per teacher."""
    entries: list[dict[str, object]] = []
    tensors: dict[str, Tensor] = {}
    for index, (config, target, inputs) in enumerate(targets):
        entries.append(
            {
                **config_to_dict(_Holder(alignment=config), UNIONS),
                "inputs": asdict(inputs),
                "feature_dim": target.feature_dim,
                "dim": target.dim,
                "std_ratio": target.std_ratio_,
            }
        )
        tensors |= {f"{index}.{name}": tensor for name, tensor in target.state_dict().items()}
    record = {"format": FORMAT, "alignments": entries}
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"record": json.dumps(record)})


def load_alignments(file: Path) -> list[tuple[Alignment, AlignedTarget, AlignmentInputs]]:
    """Read an alignment file.

    Raises:
        ValueError: missing, damaged or foreign file.
    """
    refuse_missing(file)
    try:
        with safe_open(file, framework="pt") as opened:
            record = json.loads((opened.metadata() or {}).get("record", "{}"))
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not an alignment file: {error}") from error
    if not isinstance(record, dict) or "format" not in record:
        raise ValueError(f"{file} is not an alignment file: it has no record of one")
    if record["format"] != FORMAT:
        raise ValueError(f"{file} has the format {record['format']}, this version reads {FORMAT}: fit it again")
    try:
        return [_build(entry, f"{index}.", tensors) for index, entry in enumerate(record["alignments"])]
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, cattrs.BaseValidationError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} is damaged, its record is not that of an alignment: {reason}") from error


def _build(
    entry: dict[str, Any], prefix: str, tensors: dict[str, Tensor]
) -> tuple[Alignment, AlignedTarget, AlignmentInputs]:
    """The alignment of one entry of a file's record, whose tensors have a prefix."""
    config = config_from_json(json.dumps({"alignment": entry["alignment"]}), _Holder, UNIONS).alignment
    target = build_alignment(config, entry["feature_dim"], entry["dim"])
    target.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
    target.std_ratio_ = tuple(entry["std_ratio"]) if entry["std_ratio"] else None
    return config, target, cattrs.structure(entry["inputs"], AlignmentInputs)


def load_alignment(file: Path) -> tuple[AlignedTarget, AlignmentInputs]:
    """Read the alignment of one teacher.

    Raises:
        ValueError: missing, damaged or foreign file, or alignments of several teachers.
    """
    loaded = load_alignments(file)
    if len(loaded) != 1:
        raise ValueError(f"{file} holds the alignments of {len(loaded)} teachers, expected that of one")
    return loaded[0][1], loaded[0][2]


def import_kdep_alignment(
    basis_file: Path, mean_file: Path, out: Path, *, config: Svd, dim: int, std_file: Path | None = None
) -> None:
    """Turn KDEP's published `*_v.npy` and `*_feat_mean.npy` into an alignment file.

    Their basis is the V of `torch.svd` of the centred features: (D, D), one component per column. The files contain no
    scale: it is set to 1, so that the target is KDEP's own. Nor do they name their teacher.

    Args:
        basis_file: (D, D) or (D, d).
        mean_file: (D,).
        out: file to write.
        config: SVD, or SVD + PTS with its temperature and exponent.
        dim: number of components, d.
        std_file: singular values (D,), if published; they only set the variances that are reported.

    Raises:
        ValueError: files that are missing, hold pickled objects, or do not match each other.
    """
    basis, mean = _load_array(basis_file), _load_array(mean_file)
    if basis.ndim != 2 or mean.shape != (basis.shape[0],):
        raise ValueError(
            f"{basis_file} {basis.shape} and {mean_file} {mean.shape} do not match: expected (D, D) and (D,)"
        )
    if not 0 < dim <= basis.shape[1]:
        raise ValueError(f"{basis_file} has {basis.shape[1]} components, expected at least {dim}")
    gram = basis[:, :dim].T @ basis[:, :dim]
    if not np.abs(gram - np.eye(dim)).max() <= 1e-3:  # NaN too
        raise ValueError(f"the columns of {basis_file} are not orthonormal: expected the V of an SVD")
    target = build_alignment(config, len(mean), dim)
    assert isinstance(target.alignment, ScaledSvd), "only SVD alignments are published"
    svd = target.alignment.svd
    variance = np.ones(len(mean)) if std_file is None else _load_array(std_file) ** 2
    if variance.shape != mean.shape or not (np.isfinite(variance).all() and np.isfinite(mean).all()):
        raise ValueError(
            f"{std_file or mean_file} does not hold {len(mean)} finite numbers, as many as the mean feature"
        )
    svd.mean_.copy_(torch.from_numpy(mean))
    svd.basis_.copy_(fix_signs(torch.from_numpy(basis[:, :dim].copy())))
    svd.variance_.copy_(torch.from_numpy(variance))
    svd.std_.copy_(svd.variance_[:dim].sqrt())
    svd.rank_.fill_(dim)
    write_file(out, encode_alignments([(config, target, AlignmentInputs())]))


def _load_array(file: Path) -> np.ndarray:
    refuse_missing(file)
    try:
        # mapped: a damaged header may state terabytes; ValueError: not numbers
        return np.load(file, mmap_mode="r", allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError) as error:  # a header is Python
        raise ValueError(f"{file} is not an .npy array (read with allow_pickle=False): {error}") from error
