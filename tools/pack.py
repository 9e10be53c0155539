"""Pack images into tar shards, as WebDataset reads them: a few large files in place of millions of small ones.

    python tools/pack.py imagenet/train --out imagenet-shards
    python tools/pack.py images.csv --out shards --shard-mib 1024 --columns.image file

Every --data, --train, --test and --images takes the folder of the shards. Names and order of the images are kept, so
that the same seed trains on the same samples; labels too, in a member .cls beside each image and in classes.txt. An
image whose name has no suffix of a format gets one. At the end everything is read back and compared.
"""

import io
import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from stillroom.backbone.atomic import refuse_existing, replace_directory
from stillroom.backbone.checks import at_least
from stillroom.backbone.command import report_errors
from stillroom.images import Source, read_labelled, read_unlabelled
from stillroom.images.decode import open_image
from stillroom.images.files import refuse_missing_images
from stillroom.images.formats import image_suffixes, is_hidden, suffix
from stillroom.images.labels import Columns
from stillroom.images.listing import ListingWriter, first_twice
from stillroom.images.tars import CLASSES, LABEL

MIB = 2**20
SHARD_MIB = 512


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What to pack, and into what."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of images, file list, table, or any other source of images."""
    out: Path
    """Folder of shards to create."""
    labels: bool = True
    """Pack labels: those of the source, or its class folders."""
    shard_mib: int = SHARD_MIB
    """Size of a shard, MiB; the image that would exceed it begins the next one."""
    columns: Columns = field(default_factory=Columns)

    def run(self) -> None:
        at_least(self, 1, "shard_mib")
        refuse_existing(self.out)
        refuse_missing_images(self.data)
        source = read(self)
        shards, fingerprint = pack(source, self.out, self.shard_mib * MIB)
        count = f"{len(source)} images of {len(source.classes)} classes" if source.classes else f"{len(source)} images"
        print(f"{self.out}: {count} in {shards} shards, read back and equal, fingerprint {fingerprint}")


def read(pack: Pack) -> Source:
    """List the images, with their labels unless they are not wanted."""
    if not pack.labels:
        return read_unlabelled(pack.data, pack.columns)
    try:
        return read_labelled(pack.data, columns=pack.columns)
    except ValueError as error:
        raise ValueError(f"{error}; or pass --no-labels") from error


def pack(source: Source, out: Path, shard_bytes: int) -> tuple[int, str]:
    """Write a folder of shards, and read them back; returns their number and the fingerprint of their images.

    Raises:
        ValueError: see `refuse_names` and `verify`.
    """
    refuse_names(source)
    with replace_directory(out) as folder:
        shards = write_shards(source, folder, shard_bytes)
        packed = verify(source, folder, labelled=source.labels is not None)
        return shards, packed.fingerprint


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
        content, label = source.read(index), source.label(index)
        name = name_of(source, index, content)
        members = [(name, content)]
        if label is not None:
            members.append((f"{sample_key(name)}{LABEL}", str(label).encode()))
        yield members


def sample_key(name: str) -> str:
    """What WebDataset calls the members of one sample by: the name up to the first dot behind its folders."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def name_of(source: Source, index: int, content: bytes) -> str:
    """The name of an image in the shards: its own; without an image's suffix, which readers go by, followed by one."""
    name = source.name(index)
    if suffix(name.rpartition("/")[2]) in image_suffixes():
        return name
    with open_image(content, source.where(index)) as opened:
        kind = str(opened.format)
    usual = {"JPEG": ".jpg", "MPO": ".jpg"}.get(kind, f".{kind.lower()}")
    if usual not in image_suffixes():
        usual = next(known for known, of in Image.registered_extensions().items() if of == kind)
    return name + usual


def refuse_names(source: Source) -> None:
    """Raise ValueError for names that readers of shards leave out, or take for parts of one sample."""
    keys, hashes = ListingWriter(), array("q")
    for index, encoded in enumerate(source.listing.names(source.rows)):
        name = os.fsdecode(encoded)
        if any(map(is_hidden, name.split("/"))):
            raise ValueError(f"{source.where(index)} is hidden, {name}: readers of shards leave it out; rename it")
        key = os.fsencode(sample_key(name))
        keys.add(key)
        hashes.append(hash(key))
    if (twice := first_twice(keys.finish(), hashes)) is None:
        return
    one, other = map(source.where, twice)
    if one == other:
        raise ValueError(
            f"{one} is listed twice: each image of shards needs a name of its own, remove one of the lines"
        )
    raise ValueError(
        f"{one} and {other} would be one sample, {sample_key(source.name(twice[0]))}: WebDataset's names end at the "
        f"first dot; rename one of them"
    )


def verify(source: Source, folder: Path, *, labelled: bool) -> Source:
    """Read the shards back, and compare names, order, labels and bytes; returns their images.

    Raises:
        ValueError: a difference, which means a disk or a file that cannot be relied on.
    """
    packed = read_labelled(folder) if labelled else read_unlabelled(folder)
    if len(packed) != len(source):
        raise ValueError(f"{len(packed)} of the {len(source)} images of {source.root} were read back: pack it again")
    if list(packed.labels or ()) != list(source.labels or ()) or packed.classes != source.classes:
        raise ValueError(f"the labels of {source.root} were not read back as they were written: pack it again")
    for index in range(len(source)):
        content = source.read(index)
        if packed.name(index) != name_of(source, index, content) or packed.read(index) != content:
            raise ValueError(f"{source.where(index)} was not read back as it was written: pack it again")
    return packed


@report_errors
def main() -> None:
    """Pack the images."""
    tyro.cli(Pack, description=__doc__).run()


if __name__ == "__main__":
    main()
