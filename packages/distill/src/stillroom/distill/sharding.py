"""A frozen teacher whose weights are divided over the processes of a run, for one that is too large for a device."""

from collections.abc import Iterator

import torch
from torch import nn

from stillroom.runs import Run


class Shards:
    """Divides a net's weights: every forward pass of one process needs all of them, which gather the weights.

    In a pass over images some processes have more batches than others. Those that are done take part with an example
    until all are, see `finish`.

    Args:
        net: frozen, on the CPU; its weights are moved to the run's device part by part.
        example: an input of the net, on the run's device.
        run: this process, of several.

    Reference: Zhao et al., "PyTorch FSDP", VLDB 2023; torch's `fully_shard` (FSDP2).
    """

    def __init__(self, net: nn.Module, example: torch.Tensor, run: Run) -> None:
        from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415  # few runs wait for these
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

        self._net, self._example, self._run = net, example, run
        self._is_done = False
        mesh = init_device_mesh(run.device.type, (run.world_size,))
        net.to(memory_format=torch.contiguous_format)  # what fully_shard divides
        for block in blocks_of(net):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(net, mesh=mesh, reshard_after_forward=True)
        net.register_forward_pre_hook(self._announce, prepend=True)

    def _announce(self, *_: object) -> None:
        """Tell the processes that are done that a forward pass begins."""
        if not self._is_done:
            self._run.sum(torch.ones(1, device=self._run.device))

    @torch.no_grad()
    def finish(self) -> None:
        """End a pass over images: take part in the forward passes of the others until they have none left."""
        self._is_done = True
        while self._run.sum(torch.zeros(1, device=self._run.device)).item():
            self._net(self._example)
        self._is_done = False


def blocks_of(net: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules of a net's sequences: each is called as a whole, by whatever forward function."""
    for child in net.children():
        if not isinstance(child, nn.Sequential | nn.ModuleList):
            yield from blocks_of(child)
            continue
        for member in child:
            if isinstance(member, nn.Sequential | nn.ModuleList):
                yield from blocks_of(nn.ModuleList([member]))
            elif any(True for _ in member.parameters()):
                yield member
