"""Gradient averaging, shared batch-norm statistics, weight averaging."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stillroom.runs import Run
from stillroom.runs.parallel import broadcast_buffers, build_ema, load_optimizer, wrap_ddp
from twins import assert_bit_equal


def test_one_process_needs_no_wrapper() -> None:
    net = nn.Linear(2, 2)
    assert wrap_ddp(net, Run(device=torch.device("cpu"))) is net


def test_two_processes_average_gradients_and_share_the_buffers_of_the_first(
    in_two_processes: Callable[..., list],
) -> None:
    def step() -> tuple[list[float], list[float]]:
        run = Run.start("cpu")
        net = nn.BatchNorm1d(1)
        wrapped = wrap_ddp(net, run, broadcast_buffers=False)
        images = torch.tensor([[1.0], [3.0]]) * (run.rank + 1)
        (wrapped(images) * torch.tensor([[0.0], [run.rank + 1.0]])).sum().backward()
        broadcast_buffers(net, run)
        found = net.weight.grad.tolist(), net.running_mean.tolist()  # type: ignore[union-attr]
        run.close()
        return found

    (gradient, mean), other = in_two_processes(step)
    assert other == (gradient, mean)
    torch.testing.assert_close(torch.tensor(gradient), torch.tensor([1.5]), rtol=1e-4, atol=0)  # of 1 and 2
    torch.testing.assert_close(torch.tensor(mean), torch.tensor([0.2]))  # a tenth of the first process's mean, 2


def test_the_average_follows_weights_and_buffers_at_its_decay() -> None:
    net = nn.BatchNorm1d(1)
    assert build_ema(net, 0.0) is None
    average = build_ema(net, 0.9)
    assert average is not None
    average.update_parameters(net)  # the first call copies
    nn.init.constant_(net.weight, 2.0)
    net.running_mean.fill_(1.0)  # type: ignore[union-attr, operator]
    average.update_parameters(net)
    torch.testing.assert_close(average.module.weight.detach(), torch.tensor([0.9 * 1 + 0.1 * 2]))
    torch.testing.assert_close(average.module.running_mean, torch.tensor([0.1]))


def test_the_average_has_the_bits_of_torchs_own_and_reads_its_state() -> None:
    """A state that version 0.5 saved is torch's `AveragedModel`'s."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    ours = build_ema(net, 0.9)
    assert ours is not None
    for _ in range(4):
        net(torch.randn(2, 3, 8, 8))
        for parameter in net.parameters():
            parameter.data += torch.randn_like(parameter)
        theirs.update_parameters(net)
        ours.update_parameters(net)
    assert_bit_equal(ours.state_dict(), theirs.state_dict())
    again = build_ema(net, 0.9)
    assert again is not None
    again.load_state_dict(theirs.state_dict())
    assert int(again.n_averaged) == 4


def test_an_optimisers_state_takes_the_kernels_of_the_device_that_resumes_it() -> None:
    net = nn.Linear(2, 2)
    here, there = (torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=fused) for fused in (None, True))
    net(torch.ones(1, 2)).sum().backward()
    there.step()
    load_optimizer(here, there.state_dict())
    assert here.param_groups[0]["fused"] is None
    assert here.state_dict()["state"].keys() == there.state_dict()["state"].keys()
