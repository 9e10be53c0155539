"""Which files are images, by their names: the formats that Pillow decodes, and names that are hidden."""

from functools import cache

SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"})
"""Folders that systems fill with copies and thumbnails of a user's images, without hiding them by a dot."""


@cache
def image_formats() -> tuple[str, ...]:
    """The formats that the installed Pillow decodes, by its names.

    Not among them: formats that it only writes (PDF, Palm) or only identifies (MPEG, and stubs, whose pixels need a
    handler of the user's: HDF5, GRIB, BUFR, WMF), and EPS, a program, which Ghostscript would run.
    """
    from PIL import Image, ImageFile  # noqa: PLC0415  # all plugins; most commands list no images

    Image.init()
    stubs = {stub.format for stub in ImageFile.StubImageFile.__subclasses__()}
    return tuple(name for name in Image.OPEN if name not in stubs | {"EPS", "MPEG"})


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of the formats that the installed Pillow decodes, in lower case."""
    from PIL import Image  # noqa: PLC0415

    formats = {*image_formats(), "MPO"}  # several JPEGs in one file, opened as a JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def suffix(name: str) -> str:
    """The suffix of a file's name, in lower case, as `Path.suffix` takes it."""
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def member_name(name: str) -> str:
    """The name of a member of a tar or zip file as it is unpacked: below the folder, not at `/`."""
    return name.removeprefix("./").lstrip("/")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name, without its folder, is hidden."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS
