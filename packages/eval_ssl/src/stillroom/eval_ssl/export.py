"""Features as files: .npy, .safetensors, or Parquet."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from stillroom.eval_ssl.config import FileFormat
from stillroom.eval_ssl.features import FeatureSet
from stillroom.eval_ssl.settings import import_pyarrow


def export_features(folder: Path, name: str, found: FeatureSet, file_format: FileFormat) -> Path:
    """Write features below `folder`, and return the file.

    - npy: NAME.npy, (n, d) float32; safetensors: NAME.safetensors with `features` and `labels`. Beside either stands
      NAME.csv: row, path, label, class, in the order of the rows.
    - parquet: NAME.parquet with the columns path, label, class, feature.

    Labels are -1 and classes empty where there are none.

    Raises:
        ValueError: parquet without pyarrow.
    """
    labels = found.labels.tolist()
    paths = [str(path) for path in found.files.paths]
    classes = [found.files.classes[label] if label >= 0 else "" for label in labels]
    file = folder / f"{name}.{file_format}"
    if file_format == "parquet":
        _write_parquet(file, found.features.numpy(), {"path": paths, "label": labels, "class": classes})
        return file
    if file_format == "npy":
        np.save(file, found.features.numpy())
    else:
        save_file({"features": found.features.contiguous(), "labels": found.labels}, file)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["row", "path", "label", "class"])
        writer.writerows(zip(range(len(paths)), paths, labels, classes, strict=True))
    return file


def _write_parquet(file: Path, features: np.ndarray, columns: dict[str, list[Any]]) -> None:
    arrow, parquet = import_pyarrow()
    rows = arrow.FixedSizeListArray.from_arrays(arrow.array(features.reshape(-1)), features.shape[1])
    parquet.write_table(arrow.table({**columns, "feature": rows}), file)
