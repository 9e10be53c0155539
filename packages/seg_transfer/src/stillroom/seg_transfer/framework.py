"""Check that MMSegmentation, MMEngine and MMCV are installed, in their maintained releases."""

import atexit
import os
import shutil
import tempfile
from importlib import metadata, util

INSTALL = "pip install onedl-mmsegmentation onedl-mmengine onedl-mmcv"
_NAMES = {"mmengine": "onedl-mmengine", "mmcv": "onedl-mmcv", "mmseg": "onedl-mmsegmentation"}
_OLD = {
    "mmengine": ("mmengine", "mmengine-lite"),
    "mmcv": ("mmcv", "mmcv-full", "mmcv-lite"),
    "mmseg": ("mmsegmentation",),
}


class FrameworkError(ImportError, ValueError):
    """A framework that must be installed or uninstalled."""


def find_framework() -> None:
    """Look for the three packages, without importing them.

    Raises:
        FrameworkError: one is missing, or is the abandoned release with the same import name; with what to install.
    """
    for name, distribution in _NAMES.items():
        if old := next((d for d in _OLD[name] if _installed(d)), None):
            raise FrameworkError(
                f"{old} is installed, the abandoned release of {name}, which does not run with today's torch: "
                f"pip uninstall {old}, then {INSTALL}"
            )
        if util.find_spec(name) is None:
            raise FrameworkError(f"stillroom.seg_transfer needs {name}, which comes with {distribution}: {INSTALL}")


def set_cache_home() -> None:
    """Give yapf, which MMEngine writes configs with, a cache where there is no home directory for it.

    It is this process's alone: yapf unpickles what it finds there.
    """
    if os.path.expanduser("~") == "~" and "XDG_CACHE_HOME" not in os.environ:  # noqa: PTH111  # Path.home() would raise
        os.environ["XDG_CACHE_HOME"] = folder = tempfile.mkdtemp(prefix="stillroom-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
