"""Several processes without GPUs, which MMEngine's own wrapper of the model does not know."""

from typing import Any

from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import nn


@MODEL_WRAPPERS.register_module()
class OnCpus(MMDistributedDataParallel):
    """MMEngine's wrapper, which names a GPU to each process, without that name.

    Args:
        module: the model.
        device_ids: of MMEngine; left out.
        arguments: of torch's wrapper.
    """

    def __init__(self, module: nn.Module, device_ids: object = None, **arguments: Any) -> None:
        super().__init__(module=module, **arguments)
