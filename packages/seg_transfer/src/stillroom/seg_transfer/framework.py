"""MMSegmentation, MMEngine and MMCV: whether they are there, and are the maintained ones."""

import contextlib
import io
import warnings
from importlib import metadata, util

INSTALL = "pip install onedl-mmsegmentation onedl-mmengine onedl-mmcv"
_NAMES = {"mmengine": "onedl-mmengine", "mmcv": "onedl-mmcv", "mmseg": "onedl-mmsegmentation"}
_OLD = {
    "mmengine": ("mmengine", "mmengine-lite"),
    "mmcv": ("mmcv", "mmcv-full", "mmcv-lite"),
    "mmseg": ("mmsegmentation",),
}


def find_framework() -> None:
    """Look for the three packages, without importing them.

    Raises:
        ImportError: one is missing, or is the abandoned release of the same import name; what to install is said.
    """
    for name, distribution in _NAMES.items():
        if old := next((d for d in _OLD[name] if _installed(d)), None):
            raise ImportError(
                f"{old} is installed, the abandoned release of {name}, which does not run with today's torch: "
                f"pip uninstall {old}, then {INSTALL}"
            )
        if util.find_spec(name) is None:
            raise ImportError(f"stillroom.seg_transfer needs {name}, which comes with {distribution}: {INSTALL}")


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


find_framework()
with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    # What they say of compiled operators and of a service of their makers: segmentation needs neither.
    warnings.simplefilter("ignore")
    import mmseg.datasets
    import mmseg.models  # noqa: F401
