"""The two backends: Detectron2's detectors and torchvision's, each imported only when a run names it."""

from stillroom.det_transfer.backends.protocol import Backend
from stillroom.det_transfer.config import BackendName, refuse_missing_backend


def find_backend(name: BackendName) -> Backend:
    """Import a backend.

    Raises:
        ValueError: Detectron2 is requested and is not installed.
    """
    refuse_missing_backend(name)
    if name == "torchvision":
        from stillroom.det_transfer.backends.torchvision import backend as torchvision_backend  # noqa: PLC0415

        return torchvision_backend
    from stillroom.det_transfer.backends.detectron2 import backend as detectron2_backend  # noqa: PLC0415

    return detectron2_backend
