"""What every built-in compressor keeps: shapes, types, its input, the same result each time."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire.compressors import COMPRESSED, compressor_names, make_compressor


@pytest.mark.parametrize("name", compressor_names())
@pytest.mark.parametrize("k", [1, 3, 8, 100])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (8, 3), (9, 1), (20, 24)])
def test_shapes_are_those_of_the_contract(name: str, k: int, shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    compressor = make_compressor(name, k)
    arrays = compressor.compress(rows)
    assert arrays[COMPRESSED].shape == (min(k, shape[0]), shape[1])
    assert compressor.decompress(arrays, len(rows)).shape == shape
