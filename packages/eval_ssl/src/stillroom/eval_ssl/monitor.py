"""k-NN accuracy of a net in training, for a trainer that is handed this function."""

from pathlib import Path

import numpy as np

from stillroom.backbone import Backbone, ImageFiles, Run, read_labelled
from stillroom.eval_ssl.features import extract_features, is_constant
from stillroom.eval_ssl.knn import knn_classify

K = 20
_TEST_SHARE = 0.2  # of a folder that is not split into train/ and val/


def monitor_knn(backbone: Backbone, folder: Path, run: Run) -> dict[str, float]:
    """Top-1 accuracy of 20-NN and 1-NN on a labelled folder, by the protocol `knn/v1`.

    Args:
        backbone: on the run's device; it is left in eval mode.
        folder: FOLDER/train/<class>/ and FOLDER/val/<class>/, or FOLDER/<class>/, of which a fixed fifth is the test.
        run: this process.

    Returns:
        `knn20` first, which is what a best student is picked by, then `knn1`; fractions.

    Raises:
        ValueError: no class folders, or one image alone.
    """
    train, test = split_folder(folder)
    k = min(K, len(train))
    known = extract_features(backbone, train, run, label="k-NN train", workers=0, keep=False)
    asked = extract_features(backbone, test, run, label="k-NN test", workers=0, keep=False)
    if is_constant(known.features):  # a collapsed student: worth a number, not an error
        return {f"knn{K}": 1 / len(train.classes), "knn1": 1 / len(train.classes)}
    train_x, train_y, test_x = (each.to(run.device) for each in (known.features, known.labels, asked.features))
    predicted = knn_classify(train_x, train_y, test_x, (1, k), len(train.classes))
    hits = {n: float((classes.cpu() == asked.labels).float().mean()) for n, classes in predicted.items()}
    return {f"knn{K}": hits[k], "knn1": hits[1]}


def split_folder(folder: Path) -> tuple[ImageFiles, ImageFiles]:
    """The images to compare with and the images to classify."""
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        train = read_labelled(folder / "train")
        return train, read_labelled(folder / "val", train.classes)
    files = read_labelled(folder)
    if len(files) < 2:
        raise ValueError(f"{folder} holds one image: there is none to compare it with")
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    count = max(1, round(_TEST_SHARE * len(files)))
    return files.subset(sorted(order[count:])), files.subset(sorted(order[:count]))
