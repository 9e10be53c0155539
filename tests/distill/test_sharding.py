"""A teacher whose weights are divided over processes; on the CPU, where torch can do that too."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from distill_runs import small_config, weights_of
from torch import nn

from stillroom.distill import distill
from stillroom.distill.config import Cache, DistillConfig, Monitor, check_settings
from stillroom.distill.nets import Net
from stillroom.distill.sharding import blocks_of
from stillroom.distill.slots import LinearHead, Raw
from stillroom.distill.teacher import build_teacher
from stillroom.runs import Run

Processes = Callable[[Callable[[], object]], list]


@pytest.mark.parametrize("views", [0, 1], ids=["live", "cached"])
def test_a_divided_teacher_teaches_the_same_to_the_bit(
    unlabelled: Path, tmp_path: Path, in_two_processes: Processes, views: int
) -> None:
    """One of the processes has no batch of the alignment's, and one none of the held-out images."""

    def work() -> bool:
        for shard in (False, True):
            config = small_config(
                unlabelled,
                tmp_path / f"shard-{shard}",
                shard_teacher=shard,
                epochs=1,
                alignment=Raw(),
                head=LinearHead(),
                alignment_images=60,
                monitor=Monitor(held_out=0.1, every=1),
                cache=Cache(views=views),
            )
            distill(config)
        return True

    assert in_two_processes(work) == [True, True]
    whole, divided = (weights_of(tmp_path / f"shard-{shard}" / "student") for shard in (False, True))
    assert all(torch.equal(whole[name], divided[name]) for name in whole)


def test_each_process_holds_its_part_of_the_weights(in_two_processes: Processes) -> None:
    def work() -> list[float]:
        run = Run.start("cpu")
        teacher = build_teacher(Net(name="random:timm/vit_tiny_patch16_224", size=32))
        images = torch.randint(0, 256, (2 + run.rank, 3, 32, 32), dtype=torch.uint8)
        before, total = teacher(images).features, sum(one.numel() for one in teacher.parameters())
        teacher.place(run, shard=True)
        for _ in range(2 - run.rank):
            after = teacher(images).features
        teacher.finish_pass()
        held = sum(one.to_local().numel() for one in teacher.parameters())  # type: ignore[attr-defined]
        run.close()
        return [float((before - after).abs().max()), held / total]

    for difference, share in in_two_processes(work):
        assert difference < 1e-5
        assert share == pytest.approx(0.5, abs=0.01)


def test_blocks_are_the_outermost_members_of_sequences() -> None:
    block = nn.Sequential(nn.Linear(2, 2))
    net = nn.ModuleDict({"stem": nn.Linear(2, 2), "stages": nn.Sequential(block, nn.ReLU()), "head": nn.Linear(2, 2)})
    assert list(blocks_of(net)) == [block[0]]


def test_what_a_divided_teacher_cannot_do_is_refused(unlabelled: Path, tmp_path: Path) -> None:
    def config(**changes: object) -> DistillConfig:
        return small_config(unlabelled, tmp_path / "run", shard_teacher=True, **changes)

    with pytest.raises(ValueError, match="--shard-teacher divides weights over several processes, and this is one"):
        distill(config())
    with pytest.raises(ValueError, match="--compile needs a teacher whose weights are whole"):
        check_settings(config(compile=True), has_knn=False)
