"""Images in a zip file, read at random by an index of its directory."""

import os
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stillroom.images.formats import image_suffixes, member_name
from stillroom.images.left_out import LeftOut, report_left_out, why_left_out
from stillroom.images.listing import Listing, ListingWriter, first_twice, keep_listing, kept_at, map_listing
from stillroom.images.source import Reader, Source, SourceError, stamp_at_once
from stillroom.images.storage import Storage

_HEADER = 30  # bytes of a member's own header, before its name and its extra field
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def read_zip(place: str, storage: Storage) -> Source:
    """List the images of a zip file in the order of their paths; the index is made once, and kept.

    Raises:
        ValueError: not a whole zip file, no images, two members of one name, or members that are encrypted or packed by
            another method than deflate.
    """
    state = [*storage.stat(place)]
    where = kept_at("zip", storage.real_path(place), sorted(image_suffixes()))

    def is_current(kept: Listing) -> bool:
        return kept.meta["state"] == state

    def make(writer: ListingWriter) -> Listing:
        left_out = LeftOut()
        hashes = array("q")
        for member in _members(place, storage):
            name = member_name(member.filename)
            if (why := why_left_out(name)) is not None:
                left_out.add(why, name)
                continue
            if member.flag_bits & 1 or member.compress_type not in _METHODS:
                raise ValueError(f"{place}: {member.filename} is encrypted, or not packed by deflate: pack it again")
            writer.add(os.fsencode(name), member.file_size, member.header_offset, member.compress_size, member.CRC)
            hashes.append(hash(os.fsencode(name)))
        if not len(writer):
            raise ValueError(f"{place} holds no images: expected members of formats that Pillow decodes")
        listing = writer.finish(state=state, **left_out.meta)
        if (twice := first_twice(listing, hashes)) is not None:
            raise ValueError(f"{place} holds {os.fsdecode(listing.name(twice[0]))} twice: remove one of them")
        return listing

    listing = map_listing(where, is_current)
    if listing is None:
        listing = keep_listing(where, place, ("sizes", "begins", "packed", "checks"), make, is_current)
    report_left_out(Path(place), listing.meta)
    return Source(Path(place), listing, ZipReader(place, listing, storage), left_out=listing.meta["left_out"])


def _members(place: str, storage: Storage) -> list[zipfile.ZipInfo]:
    try:
        with storage.open(place) as opened, zipfile.ZipFile(opened) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{place} is not a whole zip file ({error}): copy it again") from error
    return sorted(members, key=lambda member: member_name(member.filename).replace("/", "\0"))


class ZipReader(Reader):
    """Images in a zip file, read by their places in it.

    Args:
        place: of the file.
        listing: names, sizes and places, made by `read_zip`.
        storage: where it lies.
    """

    def __init__(self, place: str, listing: Listing, storage: Storage) -> None:
        self.place, self.listing, self.storage = place, listing, storage

    def read(self, row: int, start: int = 0, stop: int | None = None) -> bytes:
        size, begin, packed, check = (int(column[row]) for column in self.listing.columns.values())
        try:
            if [*self.storage.stat_again(self.place)] != self.listing.meta["state"]:
                raise SourceError(f"{self.place} has changed since its index was made: start again, it is indexed anew")
            header = self.storage.read(self.place, begin, begin + _HEADER)
            method, first = header[8:10], begin + _HEADER + sum(np.frombuffer(header[26:30], "<u2").tolist())
            content = self.storage.read(self.place, first, first + packed)
        except OSError as error:
            raise SourceError(
                f"{self.place} cannot be read any more ({error.strerror or error}): put it back, then resume"
            ) from error
        if int.from_bytes(method, "little") == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompress(content, -zlib.MAX_WBITS)
            except zlib.error as error:
                raise OSError(f"damaged in its zip file: {error}") from error
        if len(content) != size or zlib.crc32(content) != check:
            raise OSError(f"damaged in its zip file: {len(content)} of {size} bytes, or another checksum")
        return content[start:stop]

    def where(self, row: int) -> str:
        return f"{self.place}: {os.fsdecode(self.listing.name(row))}"

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return self.listing.columns["sizes"][rows]

    def stamps(self, rows: np.ndarray) -> Iterator[str]:
        yield stamp_at_once(f"{self.storage.real_path(self.place)} {self.listing.meta['state']}", self.listing, rows)
