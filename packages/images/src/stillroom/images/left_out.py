"""Which files of a source are left out: counted by reason, and said in one line on stderr."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.images.formats import image_suffixes, is_hidden, suffix
from stillroom.images.source import report
from stillroom.images.storage import address


@dataclass
class LeftOut:
    """Files that are no images of a source, by reason.

    Args:
        counts: how many.
        examples: the first of each.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count a file, or several below a folder."""
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.examples.setdefault(reason, name)

    @property
    def meta(self) -> dict[str, Any]:
        """What a listing holds of them, see `report_left_out`."""
        return {"left_out": self.counts, "examples": self.examples}


def why_left_out(name: str) -> str | None:
    """Why a file of an archive or a bucket is left out by its name; None for an image."""
    if any(map(is_hidden, name.split("/"))):
        return "hidden"
    return None if suffix(name) in image_suffixes() else "not an image"


def report_left_out(root: Path, found: Mapping[str, Any]) -> None:
    """Say on stderr which files of a source are left out, by reason, each with an example."""
    if reasons := found["left_out"]:
        listed = (f"{count} {why} ({found['examples'][why]})" for why, count in reasons.items())
        report(f"left out of {address(root) or root}: {', '.join(listed)}")
