"""Tables whose latents are in a number format, as another writer of the format makes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentwire.number_formats import NumberFormat, encode_rows, has_scales

_TYPES = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "bfloat16": pa.uint16(),
    "int8": pa.int8(),
    "int4": pa.uint8(),
}


def encode_file(
    path: Path, dtype: NumberFormat, target: Path, column: str = "hidden_state"
) -> Path:
    """Write a Parquet file again, with a column of float32 matrices in a number format."""
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    matrices = [np.array(rows, dtype=np.float32) for rows in table[column].to_pylist()]
    encoded = [encode_rows(rows, dtype) for rows in matrices]
    values = pa.array([list(part.values) for part in encoded], pa.list_(pa.list_(_TYPES[dtype])))
    table = table.set_column(place, column, values)
    if has_scales(dtype):
        scales = pa.array([part.scales for part in encoded], pa.list_(pa.float32()))
        table = table.append_column(f"{column}_scale", scales)
    metadata = table.schema.metadata or {}
    declared = json.loads(metadata.get(b"latentwire", b"{}"))
    storage = {"dtype": dtype, "width": matrices[0].shape[1], "rotation": encoded[0].rotation}
    declared["storage"] = {**declared.get("storage", {}), column: storage}
    text = json.dumps(declared).encode()
    pq.write_table(table.replace_schema_metadata({**metadata, b"latentwire": text}), target)
    return target
