"""Pack images into tar shards, as WebDataset reads them: a few large files in place of millions of small ones.

    python tools/pack.py imagenet/train --out imagenet-shards
    python tools/pack.py images.csv --out shards --shard-mib 1024 --columns.image file

Every --data, --train, --test and --images takes the folder of the shards. Names and order of the images are kept, so
that the same seed trains on the same samples; labels too, in a member .cls beside each image and in classes.txt. At the
end everything is read back and compared.
"""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from stillroom.backbone.atomic import refuse_existing, replace_directory
from stillroom.backbone.checks import at_least
from stillroom.backbone.command import report_errors
from stillroom.images import Source, read_labelled, read_unlabelled
from stillroom.images.files import refuse_missing_images
from stillroom.images.labels import Columns
from stillroom.images.tars import CLASSES, LABEL

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What to pack, and into what."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of images, file list, table, or any other source of images."""
    out: Path
    """Folder of shards to create."""
    labels: bool = True
    """Pack labels: those of the source, or its class folders."""
    shard_mib: int = 512
    """Size of a shard, MiB; the image that would exceed it begins the next one."""
    columns: Columns = field(default_factory=Columns)

    def run(self) -> None:
        at_least(self, 1, "shard_mib")
        refuse_existing(self.out)
        refuse_missing_images(self.data)
        source = read(self)
        with replace_directory(self.out) as folder:
            shards = write_shards(source, folder, self.shard_mib * MIB)
            verify(source, folder, labelled=source.labels is not None)
        count = f"{len(source)} images of {len(source.classes)} classes" if source.classes else f"{len(source)} images"
        print(f"{self.out}: {count} in {shards} shards, read back and equal, fingerprint {source.fingerprint}")


def read(pack: Pack) -> Source:
    """List the images, with their labels unless they are not wanted."""
    if not pack.labels:
        return read_unlabelled(pack.data, pack.columns)
    try:
        return read_labelled(pack.data, columns=pack.columns)
    except ValueError as error:
        raise ValueError(f"{error}; or pass --no-labels") from error


def write_shards(source: Source, folder: Path, shard_bytes: int) -> int:
    """Write 000000.tar and so on, and classes.txt; returns the number of shards."""
    if source.classes:
        (folder / CLASSES).write_text("".join(f"{name}\n" for name in source.classes), encoding="utf-8")
    members, count = samples(source), 0
    waiting = next(members, None)
    while waiting is not None:
        with tarfile.open(folder / f"{count:06d}.tar", "w", format=tarfile.PAX_FORMAT) as shard:
            while waiting is not None and (not shard.offset or shard.offset + num_bytes(waiting) <= shard_bytes):
                for name, content in waiting:
                    member = tarfile.TarInfo(name)
                    member.size, member.mode = len(content), 0o644
                    shard.addfile(member, io.BytesIO(content))
                waiting = next(members, None)
        count += 1
    return count


def num_bytes(members: Sequence[tuple[str, bytes]]) -> int:
    """The bytes that members take in a tar file: each its header, and its content in whole blocks."""
    return sum(tarfile.BLOCKSIZE * (1 - -len(content) // tarfile.BLOCKSIZE) for _, content in members)


def samples(source: Source) -> Iterator[list[tuple[str, bytes]]]:
    """The members of each image: the image, and its label if there is one."""
    for index in range(len(source)):
        name, label = source.name(index), source.label(index)
        folder, slash, last = name.rpartition("/")
        members = [(name, source.read(index))]
        if label is not None:
            members.append((f"{folder}{slash}{last.partition('.')[0]}{LABEL}", str(label).encode()))
        yield members


def verify(source: Source, folder: Path, *, labelled: bool) -> None:
    """Read the shards back, and compare names, order, labels and bytes.

    Raises:
        ValueError: a difference, which means a disk or a file that cannot be relied on.
    """
    packed = read_labelled(folder) if labelled else read_unlabelled(folder)
    if len(packed) != len(source) or list(packed.labels or ()) != list(source.labels or ()):
        raise ValueError(f"the shards hold {len(packed)} images or other labels, {source.root} {len(source)} images")
    for index in range(len(source)):
        if packed.name(index) != source.name(index) or packed.read(index) != source.read(index):
            raise ValueError(f"{source.where(index)} differs from {packed.where(index)}: pack it again")


@report_errors
def main() -> None:
    """Pack the images."""
    tyro.cli(Pack, description=__doc__).run()


if __name__ == "__main__":
    main()
