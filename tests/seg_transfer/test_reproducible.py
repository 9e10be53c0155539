"""What an image looks like depends on the seed and its place in the run, on nothing else."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from stillroom.backbone import build_backbone
from stillroom.runs import Run
from stillroom.seg_transfer import SegmentConfig
from stillroom.seg_transfer.reproducible import SeededSampler
from stillroom.seg_transfer.train import build_plan

Make = Callable[..., SegmentConfig]


@pytest.fixture
def batches(make_config: Make, run: Run) -> Callable[..., list[dict]]:
    """The first batches of a run, from a place on."""
    config = make_config()
    resolved = build_plan(config, run, build_backbone("torchvision/resnet18")).resolved
    init_default_scope("mmseg")

    def draw(seed: int = 0, skip: int = 0, count: int = 4, workers: int = 0) -> list[dict]:
        settings = resolved.train_dataloader.to_dict()
        settings |= {"num_workers": workers, "persistent_workers": workers > 0}
        settings["dataset"]["seed"] = seed
        loader = Runner.build_dataloader(settings, seed=seed)
        loader.sampler.skip(skip * settings["batch_size"])
        np.random.seed(skip + workers)  # what others draw must not matter
        return list(islice(iter(loader), count))

    return draw


def same(first: dict, second: dict) -> bool:
    pairs = zip(first["inputs"], second["inputs"], strict=True)
    names = [[sample.img_path for sample in batch["data_samples"]] for batch in (first, second)]
    return names[0] == names[1] and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def test_the_same_seed_gives_the_same_views_whatever_else_draws(batches: Callable[..., list[dict]]) -> None:
    whole, again = batches(), batches(workers=1)
    assert all(map(same, whole, again))
    assert not any(map(same, whole, batches(seed=1)))


def test_a_resumed_run_gets_the_images_and_views_that_it_would_have_got(batches: Callable[..., list[dict]]) -> None:
    assert all(map(same, batches()[2:], batches(skip=2, count=2)))


def test_an_image_looks_different_at_each_visit(batches: Callable[..., list[dict]]) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in batches(count=12):
        for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            seen.setdefault(sample.img_path, []).append(image)
    assert len(seen) == 9
    twice = [images for images in seen.values() if len(images) > 1]
    assert twice and not any(torch.equal(a, b) for a, b, *_ in twice if a.shape == b.shape)


def test_two_processes_share_the_stream_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(islice(iter(SeededSampler(range(5), seed=3)), 12))
    shared: list[list[int]] = []
    for rank in (0, 1):
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, 2))
        shared.append(list(islice(iter(SeededSampler(range(5), seed=3)), 6)))
    assert [key for both in zip(*shared, strict=True) for key in both] == alone
    assert sorted(key % 5 for key in alone[:5]) == [0, 1, 2, 3, 4]
    assert [key // 5 for key in alone] == list(range(12))
