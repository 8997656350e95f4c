"""The built-in compressors against slow, obvious ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from latentwire.compressors import COMPRESSED, CompressorError, make_compressor

Rows = npt.NDArray[np.float32]

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=16)
SEEDS = st.integers(0, 2**32 - 1)
KS = st.integers(1, 20)
BITS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = arrays(np.float32, SHAPES, elements=BITS)


def normal(shape: tuple[int, ...], seed: int) -> Rows:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compressed(name: str, k: int, rows: Rows) -> Rows:
    return make_compressor(name, k).compress(rows)[COMPRESSED]


@given(rows=ROWS, k=KS)
def test_first_and_last_are_rows_bit_for_bit(rows: Rows, k: int) -> None:
    assert compressed("first", k, rows).tobytes() == rows[:k].tobytes()
    assert compressed("last", k, rows).tobytes() == rows[max(0, len(rows) - k) :].tobytes()


@given(rows=ROWS, k=KS)
def test_first_and_last_restore_their_rows_and_zeros(rows: Rows, k: int) -> None:
    for name, kept in (("first", slice(0, k)), ("last", slice(max(0, len(rows) - k), None))):
        compressor = make_compressor(name, k)
        restored = compressor.decompress(compressor.compress(rows), len(rows))
        expected = np.zeros_like(rows)
        expected[kept] = rows[kept]
        assert restored.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("num_rows", "k", "places"),
    [
        (10, 1, [0]),
        (10, 2, [0, 9]),
        # 4.5 is rounded to the even place.
        (10, 3, [0, 4, 9]),
        (12, 3, [0, 6, 11]),
        (10, 4, [0, 3, 6, 9]),
        (7, 5, [0, 2, 3, 4, 6]),
        (4, 4, [0, 1, 2, 3]),
        (3, 8, [0, 1, 2]),
        (0, 8, []),
    ],
)
def test_stride_keeps_these_places(num_rows: int, k: int, places: list[int]) -> None:
    rows = np.arange(num_rows, dtype=np.float32).reshape(-1, 1)
    assert compressed("stride", k, rows)[:, 0].tolist() == places


@given(rows=ROWS, k=KS)
def test_stride_keeps_different_rows_from_first_to_last(rows: Rows, k: int) -> None:
    numbered = np.arange(len(rows), dtype=np.float32).reshape(-1, 1)
    places = compressed("stride", k, numbered)[:, 0].astype(int)
    assert np.all(np.diff(places) > 0)
    assert places[0] == 0
    assert k == 1 or places[-1] == len(rows) - 1
    assert compressed("stride", k, rows).tobytes() == rows[places].tobytes()


@given(num_rows=st.integers(1, 40), k=st.integers(1, 40), seed=SEEDS)
def test_stride_and_novel_interpolate_between_the_kept_rows(
    num_rows: int, k: int, seed: int
) -> None:
    rows = normal((num_rows, 3), seed)
    for name in ("stride", "novel"):
        compressor = make_compressor(name, k)
        result = compressor.compress(rows)
        if name == "novel":
            places = result["places"][:, 0]
        else:
            places = compressed(name, k, np.arange(num_rows, dtype=np.float32)[:, None])[:, 0]
        restored = compressor.decompress(result, num_rows)
        for column in range(3):
            expected = np.interp(np.arange(num_rows), places, result[COMPRESSED][:, column])
            np.testing.assert_allclose(restored[:, column], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(restored[places.astype(int)], result[COMPRESSED])


@given(shape=SHAPES, k=KS, seed=SEEDS)
def test_mean_pool_averages_these_segments(shape: tuple[int, int], k: int, seed: int) -> None:
    rows = normal(shape, seed)
    num_rows, num_kept = len(rows), min(k, len(rows))
    compressor = make_compressor("mean-pool", k)
    result = compressor.compress(rows)
    restored = compressor.decompress(result, num_rows)
    covered = 0
    for i in range(num_kept):
        start, end = i * num_rows // num_kept, (i + 1) * num_rows // num_kept
        assert start == covered < end
        covered = end
        mean = rows[start:end].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(result[COMPRESSED][i], mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(restored[start:end], result[COMPRESSED][[i] * (end - start)])
    assert covered == num_rows


def test_mean_pool_of_opposite_huge_values_is_exact() -> None:
    rows = np.array([[3e38], [3e38], [-3e38], [3e38]], np.float32)
    assert compressed("mean-pool", 1, rows)[0, 0] == np.float32(1.5e38)


def svd_reference(rows: Rows, k: int) -> npt.NDArray[np.float64]:
    """The definition, by numpy's decomposition in float64."""
    left, lengths, right = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    result = np.zeros((min(k, len(rows)), rows.shape[1]))
    for i in range(min(len(result), len(lengths))):
        sign = -1 if left[:, i].sum() < 0 else 1
        result[i] = sign * lengths[i] * right[i] / np.sqrt(len(rows))
    return result


@given(shape=SHAPES, k=KS, seed=SEEDS)
def test_svd_is_numpys_scaled_and_with_the_sign_fixed(
    shape: tuple[int, int], k: int, seed: int
) -> None:
    rows = normal(shape, seed)
    left, lengths, _ = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    # Without a gap directions are not determined, and without a sum their signs are not.
    assume(np.all(lengths[:-1] - lengths[1:] > 1e-3 * lengths[0]) and lengths[-1] > 1e-3)
    assume(np.all(np.abs(left.sum(axis=0)) > 1e-4))
    np.testing.assert_allclose(compressed("svd", k, rows), svd_reference(rows, k), atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (200, 200), (1, 50), (50, 1), (3, 2000)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15, 1e30])
def test_svd_is_accurate_for_real_sizes_and_scales(shape: tuple[int, int], scale: float) -> None:
    rows = normal(shape, 7)
    # A spectrum that falls over five decades, as latents have one.
    left, _, right = np.linalg.svd(rows, full_matrices=False)
    decay = np.logspace(0, -5, len(right))
    rows = (left * decay @ right * scale).astype(np.float32)
    found, expected = compressed("svd", 16, rows), svd_reference(rows, 16)
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-6 * decay[0])


def test_svd_fixes_the_sign_of_a_direction_whose_sum_is_zero() -> None:
    # Rows a, -a: the left vector is (1, -1) / sqrt(2).
    row = np.array([0.5, -3.0, 3.0], np.float32)
    for rows in (np.stack([row, -row]), np.stack([-row, row])):
        # The first of the largest components becomes positive.
        np.testing.assert_allclose(compressed("svd", 1, rows), [-row], rtol=1e-6)


def test_svd_pads_with_zeros_beyond_the_rank() -> None:
    constant = np.tile(np.array([[3.0, 4.0]], np.float32), (6, 1))
    np.testing.assert_allclose(
        compressed("svd", 4, constant), [[3, 4], [0, 0], [0, 0], [0, 0]], rtol=1e-6
    )
    assert np.count_nonzero(compressed("svd", 4, constant)[1:]) == 0
    assert np.count_nonzero(compressed("svd", 4, np.zeros((6, 2), np.float32))) == 0


@given(shape=SHAPES, seed=SEEDS)
def test_svd_keeps_the_products_of_columns(shape: tuple[int, int], seed: int) -> None:
    rows = normal(shape, seed).astype(np.float64)
    found = compressed("svd", len(rows), rows.astype(np.float32)).astype(np.float64)
    np.testing.assert_allclose(found.T @ found, rows.T @ rows / len(rows), atol=1e-5)


def cosine_matrix(num_rows: int) -> npt.NDArray[np.float64]:
    matrix = np.zeros((num_rows, num_rows))
    for i in range(num_rows):
        for t in range(num_rows):
            scale = np.sqrt((1 if i == 0 else 2) / num_rows)
            matrix[i, t] = scale * np.cos(np.pi * (t + 0.5) * i / num_rows)
    return matrix


@given(shape=SHAPES, k=KS, seed=SEEDS)
def test_dct_is_the_explicit_cosine_matrix(shape: tuple[int, int], k: int, seed: int) -> None:
    rows = normal(shape, seed)
    matrix = cosine_matrix(len(rows))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(rows)), atol=1e-12)
    expected = (matrix @ rows)[:k]
    np.testing.assert_allclose(compressed("dct", k, rows), expected, atol=1e-5)
    compressor = make_compressor("dct", k)
    restored = compressor.decompress(compressor.compress(rows), len(rows))
    np.testing.assert_allclose(restored, matrix[:k].T @ expected, atol=1e-5)


def test_dct_of_a_long_latent_is_exact() -> None:
    rows = normal((4096, 2), 3)
    compressor = make_compressor("dct", 4096)
    restored = compressor.decompress(compressor.compress(rows), 4096)
    np.testing.assert_allclose(restored, rows, atol=1e-6)


def test_dct_of_values_at_the_end_of_float32_is_refused_or_finite() -> None:
    rows = np.full((16, 2), 3e38, np.float32)
    with pytest.raises(CompressorError, match="exceeds the range of float32"):
        compressed("dct", 4, rows)


def greedy_places(rows: Rows, k: int) -> list[int]:
    """The definition: the row farthest from the span of the rows chosen so far."""
    left, chosen = rows.astype(np.float64), list[int]()
    for _ in range(min(k, len(rows))):
        lengths = np.linalg.norm(left, axis=1)
        lengths[chosen] = -1
        place = int(np.argmax(lengths))
        chosen.append(place)
        direction = left[place] / max(np.linalg.norm(left[place]), 1e-300)
        left = left - np.outer(left @ direction, direction)
    return sorted(chosen)


@given(num_rows=st.integers(1, 16), extra=st.integers(0, 8), k=KS, seed=SEEDS)
def test_novel_is_the_greedy_choice(num_rows: int, extra: int, k: int, seed: int) -> None:
    # As many columns as rows, so that no residual becomes rounding.
    rows = normal((num_rows, num_rows + extra), seed)
    result = make_compressor("novel", k).compress(rows)
    places = result["places"][:, 0].astype(int).tolist()
    assert places == greedy_places(rows, k)
    assert result[COMPRESSED].tobytes() == rows[places].tobytes()


@pytest.mark.parametrize(
    ("rows", "k", "places"),
    [
        # Equal rows: the first ones.
        ([[1, 0], [1, 0], [1, 0]], 2, [0, 1]),
        # The copy of a chosen row comes after every new direction.
        ([[3, 0], [3, 0], [0, 1]], 2, [0, 2]),
        ([[3, 0], [3, 0], [0, 1], [0, 1]], 3, [0, 1, 2]),
        # The longest one first, then what it does not explain.
        ([[1, 1], [0, 5], [2, 4]], 2, [1, 2]),
        ([[0, 0], [0, 0], [0, 0]], 1, [0]),
        # A rank of one: rounding in the residuals decides nothing.
        ([[0.1, 0.3], [0.2, 0.6], [0.7, 2.1], [0.3, 0.9]], 3, [0, 1, 2]),
    ],
)
def test_novel_breaks_ties_by_the_place(rows: list[list[float]], k: int, places: list[int]) -> None:
    result = make_compressor("novel", k).compress(np.array(rows, np.float32))
    assert result["places"][:, 0].tolist() == places


def test_novel_takes_the_first_of_rows_whose_lengths_differ_by_rounding() -> None:
    # The same components in another order have a sum of squares that rounds to another value.
    generator, row = np.random.default_rng(0), normal((301,), 0)
    rows = np.stack([row, *(generator.permutation(row) for _ in range(50))])
    lengths = np.einsum("ij,ij->i", rows.astype(np.float64), rows.astype(np.float64))
    assert lengths.max() > lengths[0]
    assert make_compressor("novel", 1).compress(rows)["places"].tolist() == [[0]]


@given(num_rows=st.integers(1, 30), copies=st.integers(1, 4), k=KS, seed=SEEDS)
def test_novel_takes_no_copy_while_there_is_something_new(
    num_rows: int, copies: int, k: int, seed: int
) -> None:
    new = normal((num_rows, num_rows), seed)
    rows = np.repeat(new, copies, axis=0)
    places = make_compressor("novel", k).compress(rows)["places"][:, 0].astype(int)
    assert len({place // copies for place in places}) == min(k, num_rows)


@pytest.mark.parametrize(
    "places",
    [
        [[0.0], [0.0]],
        [[3.0], [1.0]],
        [[0.5], [3.0]],
        [[-1.0], [3.0]],
        [[0.0], [9.0]],
        [[0.0, 1.0]],
        [[0.0]],
    ],
)
def test_novel_refuses_places_that_no_latent_has(places: list[list[float]]) -> None:
    arrays = {COMPRESSED: np.zeros((2, 4)), "places": np.array(places)}
    with pytest.raises(CompressorError, match="^places: must"):
        make_compressor("novel", 2).decompress(arrays, 9)
