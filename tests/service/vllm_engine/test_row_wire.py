"""Rows arrive as they were sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentwire_service.vllm_engine.row_ledger import WantedRow
from latentwire_service.vllm_engine.row_wire import DTYPES, decode, encode_header

WANTED = [WantedRow(0, 3, 0), WantedRow(2, 2**40, 17), WantedRow(3, -1, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_every_dtype_are_the_same_values_in_float32(dtype: str) -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    rows[0, :3] = torch.tensor([float("inf"), -0.0, 1e-40])
    rows = rows.to(getattr(torch, dtype))
    stored = rows.view(torch.uint16) if dtype == "bfloat16" else rows
    batch = decode(encode_header(WANTED, 5, dtype), stored.numpy().tobytes())
    assert batch.rows.dtype == np.float32
    assert np.array_equal(batch.rows, rows.float().numpy())
    assert (batch.requests, batch.indices) == ([3, 2**40, -1], [0, 17, 2])


def test_a_message_whose_parts_do_not_fit_together_is_refused() -> None:
    header = encode_header(WANTED, 5, "float32")
    with pytest.raises(ValueError, match="2 rows for 3 places"):
        decode(header, bytes(2 * 5 * 4))
    with pytest.raises(ValueError, match="reshape"):
        decode(header, bytes(4))
