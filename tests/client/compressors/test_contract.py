"""What every built-in compressor keeps: shapes, types, its input, the same result each time."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from latentwire.compressors import COMPRESSED, CompressorError, compressor_names, make_compressor
from latentwire.compressors.training_free import TRAINING_FREE

Rows = npt.NDArray[np.float32]

LARGEST = float(np.finfo(np.float32).max)
SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=14).map(
    lambda shape: (shape[0], max(1, shape[1]))
)
ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Few values, so that rows are often constant, zero or equal to each other.
FEW_FLOATS = st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e-40])
MODERATE = st.floats(-100, 100, width=32)
ANY_ROWS = st.one_of(
    *(arrays(np.float32, SHAPES, elements=values) for values in (ANY_FLOAT, FEW_FLOATS, MODERATE))
)
MODERATE_ROWS = arrays(np.float32, SHAPES, elements=MODERATE)
EVERY = pytest.mark.parametrize("name", TRAINING_FREE)
# Those whose coding of a decoded latent is the coding that it was decoded from.
IDEMPOTENT = ("first", "last", "stride", "mean-pool", "dct")


def random_rows(num_rows: int, width: int = 24, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).standard_normal((num_rows, width)).astype(np.float32)


def relative_error(actual: Rows, expected: Rows) -> float:
    scale = max(float(np.abs(expected).max(initial=0)), 1e-30)
    return float(np.abs(actual.astype(np.float64) - expected).max(initial=0)) / scale


@EVERY
@given(rows=ANY_ROWS, k=st.integers(1, 20))
@example(rows=np.full((5, 3), 1e30, np.float32), k=2)
@example(rows=np.full((5, 3), 1e-45, np.float32), k=2)
@example(rows=np.full((7, 3), LARGEST, np.float32), k=2)
@example(rows=np.zeros((6, 2), np.float32), k=4)
def test_results_are_as_the_contract_says_whatever_the_values(
    name: str, rows: Rows, k: int
) -> None:
    compressor, given_bytes = make_compressor(name, k), rows.tobytes()
    if name in ("svd", "dct") and np.abs(rows).max(initial=0) > LARGEST / max(rows.shape) ** 0.5:
        # A sum of that many values may leave float32, and is then refused.
        with suppress(CompressorError):
            compressor.compress(rows)
        return
    results = [compressor.compress(rows)]
    results.append({"": compressor.decompress(results[0], len(rows))})
    assert rows.tobytes() == given_bytes
    assert results[0][COMPRESSED].shape == (min(k, len(rows)), rows.shape[1])
    assert results[1][""].shape == rows.shape
    for array in (array for result in results for array in result.values()):
        assert array.dtype == np.float32
        assert array.ndim == 2
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not np.shares_memory(array, rows)
        assert np.isfinite(array).all()


@EVERY
@pytest.mark.parametrize("num_rows", [0, 1, 3, 4, 5, 11])
def test_k_limits_the_rows_and_a_short_latent_keeps_all(name: str, num_rows: int) -> None:
    rows = random_rows(num_rows)
    compressor = make_compressor(name, 4)
    result = compressor.compress(rows)
    assert len(result[COMPRESSED]) == min(4, num_rows)
    if name != "svd" and num_rows <= 4:
        assert relative_error(compressor.decompress(result, num_rows), rows) < 1e-6


@pytest.mark.parametrize("name", IDEMPOTENT)
@given(rows=MODERATE_ROWS, k=st.integers(1, 20))
def test_compressing_an_estimate_changes_nothing(name: str, rows: Rows, k: int) -> None:
    compressor = make_compressor(name, k)
    once = compressor.compress(rows)
    twice = compressor.compress(compressor.decompress(once, len(rows)))
    assert relative_error(twice[COMPRESSED], once[COMPRESSED]) < 1e-5


@given(rows=MODERATE_ROWS)
def test_the_first_direction_of_an_estimate_is_itself(rows: Rows) -> None:
    compressor = make_compressor("svd", 1)
    once = compressor.compress(rows)
    twice = compressor.compress(compressor.decompress(once, len(rows)))
    assert relative_error(twice[COMPRESSED], once[COMPRESSED]) < 1e-5


@EVERY
def test_threads_change_nothing(name: str) -> None:
    compressor, latents = make_compressor(name, 5), [random_rows(30, 64, seed) for seed in range(8)]
    expected = [compressor.compress(rows) for rows in latents]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(compressor.compress, latents * 10))
    for index, result in enumerate(found):
        for key, array in result.items():
            np.testing.assert_array_equal(array, expected[index % 8][key])


@EVERY
@pytest.mark.parametrize(
    "layout",
    [
        lambda rows: np.asfortranarray(rows),
        lambda rows: np.repeat(rows, 2, axis=0)[::2],
        lambda rows: rows[:, ::-1].copy()[:, ::-1],
        lambda rows: rows.astype(">f4"),
        lambda rows: rows.astype(np.float64),
        lambda rows: rows.tolist(),
    ],
)
def test_the_layout_of_the_input_changes_nothing(name: str, layout: Any) -> None:
    rows, compressor = random_rows(13), make_compressor(name, 4)
    expected, found = compressor.compress(rows), compressor.compress(layout(rows))
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-6, atol=1e-6)


@EVERY
def test_an_input_that_may_not_be_written_is_not_written(name: str) -> None:
    rows, compressor = random_rows(9), make_compressor(name, 4)
    rows.flags.writeable = False
    result = compressor.compress(rows)
    for array in result.values():
        array.flags.writeable = False
    compressor.decompress(result, 9)


@EVERY
@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (np.zeros(3), "rows: must have two dimensions, not 1"),
        (np.zeros((1, 2, 3)), "rows: must have two dimensions, not 3"),
        (np.float32(1), "rows: must have two dimensions, not 0"),
        ([], "rows: must have two dimensions, not 1"),
        (np.zeros((3, 0)), "rows: must have a width of at least 1"),
        (np.array([[1.0, 2], [np.nan, 1]]), "rows: row 1 is not finite in float32"),
        (np.array([[1.0, 2], [1, np.inf]]), "rows: row 1 is not finite in float32"),
        (np.array([[-1e39, 2]]), "rows: row 0 is not finite in float32"),
        (np.array([["a"]]), "rows: must be numbers"),
        (np.array([[True]]), "rows: must be numbers"),
        (np.array([[1j]]), "rows: must be numbers"),
        (np.array([[None]]), "rows: must be numbers"),
        ([[1.0], [1.0, 2.0]], "rows: must be rows of equal length"),
        (None, "rows: must be numbers"),
        ("text", "rows: must be numbers"),
    ],
)
def test_rows_that_are_no_latent_are_refused(name: str, rows: Any, text: str) -> None:
    with pytest.raises(CompressorError) as raised:
        make_compressor(name, 2).compress(rows)
    assert str(raised.value) == text
    assert raised.value.field == "rows"


@EVERY
@pytest.mark.parametrize(
    ("change", "num_rows", "text"),
    [
        ({COMPRESSED: None}, 9, "hidden_state_comp: is required"),
        ({"more": np.zeros((1, 1))}, 9, "more: is no array of this compressor"),
        (
            {COMPRESSED: np.zeros((3, 24))},
            9,
            "has 3 rows, and a latent of 9 rows is compressed to 4",
        ),
        ({}, 3, "has 4 rows, and a latent of 3 rows is compressed to 3"),
        ({}, -1, "num_rows: must be at least 0, not -1"),
        ({COMPRESSED: np.zeros(4)}, 9, "hidden_state_comp: must have two dimensions, not 1"),
        ({COMPRESSED: np.full((4, 24), np.inf)}, 9, "hidden_state_comp: row 0 is not finite"),
    ],
)
def test_arrays_of_another_compressor_are_refused(
    name: str, change: dict[str, Any], num_rows: int, text: str
) -> None:
    compressor = make_compressor(name, 4)
    arrays = {**compressor.compress(random_rows(9)), **change}
    with pytest.raises(CompressorError, match=re.escape(text)):
        compressor.decompress({k: v for k, v in arrays.items() if v is not None}, num_rows)


@EVERY
def test_facts_say_what_was_made(name: str) -> None:
    compressor = make_compressor(name, 8)
    assert (compressor.name, compressor.kind, compressor.k) == (name, name, 8)
    assert json.loads(json.dumps(dict(compressor.parameters))) == {"k": 8}
    assert compressor.source_width is None
    assert compressor.output == ("coefficients" if name == "dct" else "rows")
    assert re.fullmatch("[0-9a-f]{64}", compressor.content_hash)
    assert compressor.content_hash == make_compressor(name, 8).content_hash


def test_kind_and_k_decide_the_hash() -> None:
    hashes = {make_compressor(name, k).content_hash for name in compressor_names() for k in (8, 9)}
    assert len(hashes) == 2 * len(compressor_names())


def test_hashes_stay_the_same_from_release_to_release() -> None:
    # Stored datasets name them.
    expected = "ecccd45bef2d29633388fe51bf6901d009ae26a3045904916fc00b5cb422a1f8"
    assert make_compressor("mean-pool", 8).content_hash == expected


@EVERY
@pytest.mark.parametrize(
    ("k", "text"),
    [
        (None, "k: is required by compressor {name}"),
        (0, "k: must be from 1 to 1048576, not 0"),
        (-1, "k: must be from 1 to 1048576, not -1"),
        (sys.maxsize, f"k: must be from 1 to 1048576, not {sys.maxsize}"),
    ],
)
def test_a_wrong_k_is_refused(name: str, k: int | None, text: str) -> None:
    with pytest.raises(CompressorError) as raised:
        make_compressor(name, k)
    assert str(raised.value) == text.format(name=name)
    assert raised.value.field == "k"
