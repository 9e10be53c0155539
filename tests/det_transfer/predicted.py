"""Check that `predict` repeats the predictions of a run's evaluation."""

import json

from stillroom.det_transfer import DetectConfig, predict


def assert_predicted_as_evaluated(config: DetectConfig) -> None:
    """The saved detector predicts in every image what it predicted in the evaluation, in whichever process."""
    measured = json.loads((config.out / "predictions.json").read_text())
    images, out = config.data / "images" / "val", config.out.parent / "again"
    predict(config.out, images, out, score=0.0, device="cpu", trust_run=config.framework_config is not None)
    rows = json.loads((out / "detections.json").read_text())["annotations"]
    for number in range(4):
        first = [row["score"] for row in measured if row["image_id"] == 100 + number]
        again = [row["score"] for row in rows if row["image_id"] == 1 + number]
        assert len(first) == len(again)
        assert max((abs(a - b) for a, b in zip(first, again, strict=True)), default=0) < 1e-5, number
