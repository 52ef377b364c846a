"""Writer of Parquet: images, labels, splits, groups and weights in one file for each split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.data.dataset import Dataset
from headstart.data.writing.image_files import ImageFile, image_bytes
from headstart.errors import MissingExtraError
from headstart.files import output_path

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["write_parquet"]

ROWS = 256
"""Images in memory at once, and in a row group."""


def write_parquet(folder: Path, data: Dataset, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Write ``data.parquet``, with the bytes of the images, as the library datasets stores them.

    The columns are image (bytes and path), label, and, where the data have them, split, group and
    weight. The names of the classes are in the metadata of the file.

    Returns
    -------
    tuple of str
        Sentences about what was not kept: none.

    Raises
    ------
    MissingExtraError
        If pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", extra="data") from None
    schema = _schema(data)
    with pq.ParquetWriter(output_path(folder, "data.parquet"), schema) as writer:
        for batch in _batches(files):
            writer.write_table(_table(batch, data, schema))
    return ()


def _schema(data: Dataset) -> pa.Schema:
    import pyarrow as pa

    is_list = data.kind == "multilabel"
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [("image", image), ("label", pa.list_(pa.string()) if is_list else pa.int64())]
    text = {"dtype": "string", "_type": "Value"}
    labels: dict[str, Any] = {"names": list(data.classes), "_type": "ClassLabel"}
    features = {
        "image": {"_type": "Image"},
        "label": {"feature": text, "_type": "List"} if is_list else labels,
    }
    for name in ("split", "group"):
        if any(getattr(sample, name) is not None for sample in data.samples):
            columns.append((name, pa.string()))
            features[name] = text
    if any(sample.weight != 1 for sample in data.samples):
        columns.append(("weight", pa.float64()))
        features["weight"] = {"dtype": "float64", "_type": "Value"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(columns, metadata=metadata)


def _batches(files: Sequence[ImageFile]) -> Iterator[Sequence[ImageFile]]:
    for start in range(0, len(files), ROWS):
        yield files[start : start + ROWS]


def _table(files: Iterable[ImageFile], data: Dataset, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    ids = {name: number for number, name in enumerate(data.classes)}
    rows = []
    for file in files:
        target = file.sample.target
        label = list(target) if isinstance(target, tuple) else ids[str(target)]
        row = {
            "image": {"bytes": image_bytes(file.sample), "path": file.path},
            "label": label,
            "split": file.sample.split,
            "group": file.sample.group,
            "weight": float(file.sample.weight),
        }
        rows.append({name: row[name] for name in schema.names})
    return pa.Table.from_pylist(rows, schema=schema)
