"""The part of the dataset card that says how to read the files, whatever their number formats."""

from __future__ import annotations

from collections.abc import Sequence

from latentwire.number_formats import NumberFormat
from latentwire_batch.dataset.matrices import MatrixColumn

_PLAIN = """\
```python
from datasets import load_from_disk

dataset = load_from_disk("hf_dataset").with_format("numpy")
print(dataset[0]["task"], dataset[0]["{name}"].shape)
```
"""

_OF_SPLIT = """\
```python
from pathlib import Path

from datasets import load_dataset

dataset = load_dataset(str(Path.cwd()), split="{split}").with_format("numpy")
print(dataset[0]["task"], dataset[0]["{name}"].shape)
```

`data/` holds the rows of each split: {splits}.
"""

_ENCODED = """\
```python
import latentwire

dataset = latentwire.load(".")
print(dataset[0].task, dataset[0].matrices["{name}"].shape)
```

`latentwire.load` gives float32 back, whatever the files store. Other tools open the files as well,
and then find the stored values:

| Column | Number format | Width | Rotation |
| --- | --- | --- | --- |
{formats}

The functions below need only numpy and decode one task's matrix to float32. The files' own
metadata, key `latentwire`, and `manifest.json` hold the same table as JSON.

```python
{functions}
```
"""

_FUNCTIONS: dict[NumberFormat, str] = {
    "float16": """\
def decode_float16(values):
    return np.asarray(values, np.float16).astype(np.float32)
""",
    "bfloat16": """\
def decode_bfloat16(bits):
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)
""",
    "int8": """\
def decode_int8(codes, scales, width, rotation):
    codes = np.asarray(codes, np.float32).reshape(-1, width)
    return rotate_back(codes, rotation) * np.asarray(scales, np.float32)[:, None]
""",
    "int4": """\
def decode_int4(packed, scales, width, rotation):
    packed = np.asarray(packed, np.uint8).reshape(-1, (width + 1) // 2)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :width]
    codes = codes.astype(np.float32) - 8
    return rotate_back(codes, rotation) * np.asarray(scales, np.float32)[:, None]
""",
}
_ROTATION = """\
def rotate_back(rows, seed):
    if seed is None:
        return rows
    rows, width = rows.copy(), rows.shape[1]
    num_sign_bytes = (width + 7) // 8
    for number in (2, 1, 0):
        text = f"latentwire-rotation:{seed}:{number}"
        stream = hashlib.shake_256(text.encode()).digest(num_sign_bytes + 8 * width)
        start = 0
        for size in (2**bit for bit in range(31, -1, -1) if width >> bit & 1):
            block = rows[:, start : start + size]
            half = 1
            while half < size:
                pairs = block.reshape(len(rows), -1, 2, half)
                first, second = pairs[:, :, 0], pairs[:, :, 1]
                block = np.stack([first + second, first - second], axis=2)
                half *= 2
            rows[:, start : start + size] = block.reshape(len(rows), size) / size**0.5
            start += size
        order = np.argsort(np.frombuffer(stream[num_sign_bytes:], "<u8"), kind="stable")
        restored = np.empty_like(rows)
        restored[:, order] = rows
        packed = np.frombuffer(stream[:num_sign_bytes], np.uint8)
        bits = np.unpackbits(packed, count=width, bitorder="little")
        rows = restored * np.where(bits == 1, -1, 1).astype(np.float32)
    return rows
"""


def reading_text(matrices: Sequence[MatrixColumn], splits: Sequence[str] = ()) -> str:
    """Return Markdown that says how to read the matrix columns of a dataset.

    Args:
        matrices: its matrix columns.
        splits: of the hub layout; empty: the classic layout.
    """
    name = matrices[0].name
    encoded = [matrix for matrix in matrices if matrix.storage.dtype != "float32"]
    if not encoded and splits:
        shown = ", ".join(f"`{split}`" for split in splits)
        return _OF_SPLIT.format(name=name, split=splits[0], splits=shown)
    if not encoded:
        return _PLAIN.format(name=name)
    formats = "\n".join(
        f"| `{matrix.name}` | {matrix.storage.dtype} | {_or_dash(matrix.storage.width)} | "
        f"{_or_dash(matrix.storage.rotation)} |"
        for matrix in encoded
    )
    dtypes = [dtype for dtype in _FUNCTIONS if dtype in {m.storage.dtype for m in encoded}]
    parts = ["import numpy as np\n", *(_FUNCTIONS[dtype] for dtype in dtypes)]
    if {"int8", "int4"} & set(dtypes):
        parts = ["import hashlib\n\nimport numpy as np\n", *parts[1:], _ROTATION]
    return _ENCODED.format(name=name, formats=formats, functions="\n\n".join(parts).strip())


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
