"""Hidden rows between vLLM's worker and this service: numpy arrays as they lie in memory.

A message has two frames: a header of int64 numbers, and the rows in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentwire_service.vllm_engine.row_ledger import WantedRow

# Names of the dtypes that travel; numpy has no bfloat16, whose bits are the upper half of float32.
DTYPES = ("float32", "float16", "bfloat16")
_STORED: tuple[npt.DTypeLike, ...] = (np.float32, np.float16, np.uint16)


@dataclass(frozen=True, slots=True, eq=False)
class RowBatch:
    """The rows of one step.

    Attributes:
        requests: for each row, the number of its request.
        indices: for each row, the token t that it predicts.
        rows: `[n, hidden_size]` float32.
    """

    requests: Sequence[int]
    indices: Sequence[int]
    rows: npt.NDArray[np.float32]


def encode_header(wanted: Sequence[WantedRow], hidden_size: int, dtype: str) -> bytes:
    """Return the header of a message.

    Args:
        wanted: the rows, in order.
        hidden_size: width of a row.
        dtype: one of `DTYPES`.
    """
    numbers = [DTYPES.index(dtype), hidden_size]
    for each in wanted:
        numbers += (each.request, each.row)
    return np.array(numbers, np.int64).tobytes()


def decode(header: bytes, data: bytes | memoryview) -> RowBatch:
    """Read a message.

    Raises:
        ValueError: its parts do not fit together.
    """
    numbers = np.frombuffer(header, np.int64)
    dtype, hidden_size = int(numbers[0]), int(numbers[1])
    stored = np.frombuffer(data, _STORED[dtype]).reshape(-1, hidden_size)
    pairs = numbers[2:].reshape(-1, 2)
    if len(pairs) != len(stored):
        raise ValueError(f"{len(stored)} rows for {len(pairs)} places")
    if DTYPES[dtype] == "bfloat16":
        rows = (stored.astype(np.uint32) << 16).view(np.float32)
    else:
        rows = stored.astype(np.float32, copy=False)
    return RowBatch(pairs[:, 0].tolist(), pairs[:, 1].tolist(), rows)
