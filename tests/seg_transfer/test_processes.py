"""Segmentation in two processes."""

from collections.abc import Callable

from stillroom.backbone import read_results
from stillroom.seg_transfer import SegmentConfig, finetune


def test_two_processes_train_one_net(make_config: Callable[..., SegmentConfig], in_two_processes: Callable) -> None:
    config = make_config(steps=2, batch_size=4)
    assert in_two_processes(lambda: str(finetune(config))) == [str(config.out)] * 2
    results = read_results(config.out)
    assert results.datasets["test"].count == 3 and 0 <= results.metrics["mIoU"] <= 1
