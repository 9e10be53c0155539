"""k-NN accuracy of a net during training, as a function that a trainer can be given."""

from pathlib import Path

import numpy as np

from stillroom.backbone import Backbone
from stillroom.eval_ssl.features import extract_features, is_constant
from stillroom.eval_ssl.voting import knn_classify
from stillroom.images import Source, read_labelled
from stillroom.runs import Run

K = 20
_TEST_FRACTION = 0.2  # of a folder that is not split into train/ and val/


def monitor_knn(backbone: Backbone, folder: Path, run: Run) -> dict[str, float]:
    """Measure top-1 accuracy of 20-NN and 1-NN on a labelled folder, by the protocol `knn/v1`.

    Args:
        backbone: on the run's device; it is left in eval mode.
        folder: FOLDER/train/<class>/ and FOLDER/val/<class>/, or FOLDER/<class>/, of which a fixed fifth is the test.
        run: this process.

    Returns:
        `knn20` first, by which the best student is selected, then `knn1`; fractions.

    Raises:
        ValueError: no class folders, or a single image.
    """
    train, test = split_folder(folder)
    k = min(K, len(train))
    train_set = extract_features(backbone, train, run, label="k-NN train", workers="auto", cache=False)
    test_set = extract_features(backbone, test, run, label="k-NN test", workers="auto", cache=False)
    if is_constant(train_set.features):  # a collapsed student is at chance, and not an error
        return {f"knn{K}": 1 / len(train.classes), "knn1": 1 / len(train.classes)}
    tensors = (train_set.features, train_set.labels, test_set.features)
    train_x, train_y, test_x = (tensor.to(run.device) for tensor in tensors)
    predicted = knn_classify(train_x, train_y, test_x, (1, k), len(train.classes))
    accuracy = {n: float((classes.cpu() == test_set.labels).float().mean()) for n, classes in predicted.items()}
    return {f"knn{K}": accuracy[k], "knn1": accuracy[1]}


def split_folder(folder: Path) -> tuple[Source, Source]:
    """List the images to compare with and the images to classify."""
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        train = read_labelled(folder / "train")
        return train, read_labelled(folder / "val", train.classes)
    files = read_labelled(folder)
    if len(files) < 2:
        raise ValueError(f"{folder} holds one image: k-NN needs two")
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    count = max(1, round(_TEST_FRACTION * len(files)))
    return files.subset(sorted(order[count:])), files.subset(sorted(order[:count]))
