"""MMEngine's wrapper of a model for several processes, on CPUs."""

from typing import Any

from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import nn


@MODEL_WRAPPERS.register_module()
class OnCpus(MMDistributedDataParallel):
    """MMEngine's DistributedDataParallel without device ids, which must be None on CPUs.

    Args:
        module: the model.
        device_ids: passed by MMEngine, and ignored.
        arguments: of DistributedDataParallel.
    """

    def __init__(self, module: nn.Module, device_ids: object = None, **arguments: Any) -> None:
        super().__init__(module=module, **arguments)
