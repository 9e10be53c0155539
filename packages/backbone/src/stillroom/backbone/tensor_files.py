"""Files that `torch.save` wrote, read with `weights_only=True`: nothing that they hold is run."""

import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stillroom.backbone.atomic import refuse_missing


class TensorFileError(ValueError):
    """A file that is damaged, of another format, or holds other objects; `named` is the first of these, if known."""

    def __init__(self, sentence: str, named: str | None = None) -> None:
        super().__init__(sentence, named)
        self.named = named

    def __str__(self) -> str:
        return self.args[0]


def load_tensors(
    file: Path, *, advice: str, map_location: Any = "cpu", allowed: Sequence[Any] = (), mmap: bool = False
) -> Any:
    """Load tensors and plain values.

    Args:
        file: as `torch.save` wrote it.
        advice: what to do if it cannot be read, the end of the sentence.
        map_location: see `torch.load`.
        allowed: further types, see `torch.serialization.safe_globals`.
        mmap: leave tensors on disk until they are used, if the file's format can.

    Raises:
        ValueError: no such file; a `TensorFileError` for one that cannot be read.
    """
    refuse_missing(file)
    try:
        with torch.serialization.safe_globals([*allowed]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # the sentence says what it is
            mmap = mmap and zipfile.is_zipfile(file)
            return torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file makes the unpickler raise nearly any class
        if isinstance(error, OSError) and error.filename:
            raise
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            sentence = f"{file} holds more than tensors and plain values, {named[1]}: {advice}"
            raise TensorFileError(sentence, named[1]) from error
        raise TensorFileError(f"{file} {_describe(file, error)}: {advice}") from error


def _describe(file: Path, error: Exception) -> str:
    with file.open("rb") as opened:
        head = opened.read(64)
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself"
    if head.lstrip().startswith(b"<"):
        return "is a web page, not the file itself"
    if head.startswith((b"\x80\x03", b"\x80\x04", b"\x80\x05", b"(", b"}", b"c")):
        return "is a pickle that torch.save did not write"
    if not head.startswith((b"PK", b"\x80\x02")):
        return "is not a PyTorch file"
    reason = re.search(r"WeightsUnpickler error: ([^\n]+)", str(error))
    first = reason[1] if reason else (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"is damaged, or holds more than tensors ({first})"
