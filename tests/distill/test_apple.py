"""Apple's GPUs have no float64: alignments are fitted without one there. A stand-in refuses it as the device does."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from stillroom.distill import SvdPts
from stillroom.distill.fit import FitPass, describe, fit_alignment
from stillroom.distill.nets import Net
from stillroom.distill.slots import Alignment, ChannelSelection, Lda, Nmf, SvdVarianceMatching
from stillroom.distill.teacher import build_teacher
from stillroom.images import Source, read_labelled
from stillroom.runs import Run

APPLE = torch.device("meta")  # mps itself cannot be claimed by a build without it


class AppleTensor(Tensor):
    """A tensor that says it is on an Apple GPU; its values are those of `held`, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "AppleTensor":
        if held.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=APPLE, requires_grad=False
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the CPU; its result is on the Apple GPU if it was asked for there, or its arguments are."""
    asked = kwargs.get("device")
    is_apple = any(isinstance(leaf, AppleTensor) for leaf in tree_leaves((args, kwargs)))
    on_apple = is_apple if asked is None else torch.device(asked) == APPLE
    if "_to_copy" not in str(func) and "copy_" not in str(func) and is_apple:
        others = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and not isinstance(leaf, AppleTensor)]
        assert not [leaf for leaf in others if leaf.ndim], f"{func} mixes the devices"
    plain = {**kwargs, "device": "cpu"} if asked is not None else kwargs
    result = func(*tree_map(unwrap, args), **tree_map(unwrap, plain))
    if func._schema.is_mutable and isinstance(result, Tensor):
        return args[0]
    return (
        tree_map(lambda leaf: AppleTensor(leaf) if isinstance(leaf, Tensor) else leaf, result) if on_apple else result
    )


def unwrap(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, AppleTensor) else leaf


class AppleMode(TorchDispatchMode):
    """Makes `mps` a device of this process."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


@pytest.fixture
def apple() -> Iterator[Run]:
    with AppleMode():
        yield Run(device=APPLE)


@pytest.fixture
def files(labelled) -> Source:
    return read_labelled(labelled("train", per_class=8))


ALIGNMENTS = [SvdPts(dim=4), SvdVarianceMatching(dim=4), ChannelSelection(dim=4), Lda(dim=2), Nmf(dim=4, sweeps=2)]


def test_the_stand_in_refuses_float64_and_mixed_devices(apple: Run) -> None:
    there = torch.ones(3).to(APPLE)
    assert there.device == APPLE and (there + 1).sum().cpu().item() == 6
    with pytest.raises(TypeError, match="doesn't support float64"):
        there.double()
    with pytest.raises(TypeError, match="doesn't support float64"):
        torch.zeros(3, dtype=torch.float64, device=APPLE)
    with pytest.raises(AssertionError, match="mixes the devices"):
        there + torch.ones(3)


@pytest.mark.parametrize("config", ALIGNMENTS, ids=lambda config: type(config).__name__)
def test_every_alignment_is_fitted_on_an_apple_gpu_to_what_the_cpu_gives(config: Alignment, files: Source) -> None:
    """On the whole way: moments, fit, scale, and the line that describes it."""
    net = Net(name="random:cifar/resnet20", size=16, feature="after")
    here = fit_alignment(
        build_teacher(net), config, 4, FitPass(files=files, run=Run(device=torch.device("cpu")), workers=0)
    )
    teacher, run = build_teacher(net), Run(device=APPLE)
    with AppleMode():
        teacher.to(APPLE)
        there = fit_alignment(teacher, config, 4, FitPass(files=files, run=run, workers=0))
        assert all(tensor.device == APPLE for tensor in there.state_dict().values())
        assert describe(config, there) == describe(config, here)
        features = torch.rand(5, here.feature_dim, generator=torch.Generator().manual_seed(0))
        aligned = there(features.to(APPLE)).cpu()
    torch.testing.assert_close(aligned, here(features), rtol=1e-4, atol=1e-5)
