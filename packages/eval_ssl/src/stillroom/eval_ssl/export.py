"""Features as files: .npy, .safetensors, or Parquet."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from stillroom.eval_ssl.config import FileFormat
from stillroom.eval_ssl.extras import import_pyarrow
from stillroom.eval_ssl.features import FeatureSet


def export_features(folder: Path, name: str, features: FeatureSet, file_format: FileFormat) -> Path:
    """Write features into `folder`, and return the file.

    - npy: NAME.npy, (n, d) float32; safetensors: NAME.safetensors with `features` and `labels`. Either comes with
      NAME.csv: row, path, label, class, in the order of the rows.
    - parquet: NAME.parquet with the columns path, label, class, feature.

    Labels are -1 and classes empty where there are none.

    Raises:
        ValueError: parquet without pyarrow.
    """
    labels = features.labels.tolist()
    paths = [str(path) for path in features.files.paths]
    classes = [features.files.classes[label] if label >= 0 else "" for label in labels]
    file = folder / f"{name}.{file_format}"
    if file_format == "parquet":
        _write_parquet(file, features.features.numpy(), {"path": paths, "label": labels, "class": classes})
        return file
    if file_format == "npy":
        np.save(file, features.features.numpy())
    else:
        save_file({"features": features.features.contiguous(), "labels": features.labels}, file)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["row", "path", "label", "class"])
        writer.writerows(zip(range(len(paths)), paths, labels, classes, strict=True))
    return file


def _write_parquet(file: Path, features: np.ndarray, columns: dict[str, list[Any]]) -> None:
    arrow, parquet = import_pyarrow()
    rows = arrow.FixedSizeListArray.from_arrays(arrow.array(features.reshape(-1)), features.shape[1])
    parquet.write_table(arrow.table({**columns, "feature": rows}), file)
