from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from latentwire.rotation import MAX_ROTATED_WIDTH, Rotation, rotation_of

WIDTHS = [*range(1, 71), 576, 896, 3584]


def described_matrix(seed: int, width: int) -> np.ndarray:
    """The matrix R in float64, as `docs/number-formats.md` describes it, by explicit matrices."""
    matrix = np.eye(width)
    for number in range(3):
        digest = hashlib.shake_256(f"latentwire-rotation:{seed}:{number}".encode())
        num_sign_bytes = math.ceil(width / 8)
        stream = digest.digest(num_sign_bytes + 8 * width)
        bits = [stream[i // 8] >> (i % 8) & 1 for i in range(width)]
        words = [
            int.from_bytes(stream[start : start + 8], "little")
            for start in range(num_sign_bytes, len(stream), 8)
        ]
        order = sorted(range(width), key=lambda i: words[i])
        signs = np.diag([-1.0 if bit else 1.0 for bit in bits])
        permutation = np.zeros((width, width))
        for target, source in enumerate(order):
            permutation[target, source] = 1.0
        matrix = described_hadamards(width) @ permutation @ signs @ matrix
    return matrix


def described_hadamards(width: int) -> np.ndarray:
    """Block-diagonal: H[i, j] = (-1)^popcount(i & j) / sqrt(n) for each power of two n."""
    matrix, start = np.zeros((width, width)), 0
    for exponent in range(17, -1, -1):
        size = 2**exponent
        if width & size:
            places = np.arange(size)
            signs = 1 - 2 * (np.bitwise_count(places[:, None] & places[None]) % 2).astype(int)
            matrix[start : start + size, start : start + size] = signs / math.sqrt(size)
            start += size
    return matrix


def rows(width: int, num_rows: int = 4) -> np.ndarray:
    return np.random.default_rng(width).standard_normal((num_rows, width)).astype(np.float32)


@pytest.mark.parametrize("width", [*range(1, 40), 64, 70, 100, 576])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_the_rotation_is_the_described_matrix(width: int, seed: int) -> None:
    matrix, given = described_matrix(seed, width), rows(width)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)
    np.testing.assert_allclose(
        Rotation(seed, width).forward(given), given @ matrix.T, atol=3e-6 * math.sqrt(width)
    )
    np.testing.assert_allclose(
        Rotation(seed, width).inverse(given), given @ matrix, atol=3e-6 * math.sqrt(width)
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_inverse_restores_rows_and_lengths_are_kept(width: int) -> None:
    given = rows(width, 9)
    rotated = rotation_of(0, width).forward(given)
    assert rotated.dtype == np.float32
    assert rotated.flags.c_contiguous
    np.testing.assert_allclose(
        np.linalg.norm(rotated, axis=1), np.linalg.norm(given, axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(rotation_of(0, width).inverse(rotated), given, atol=1e-5)


@pytest.mark.parametrize("width", [1, 7, 576, 3584])
def test_a_row_is_rotated_to_the_same_bits_alone_and_among_others(width: int) -> None:
    given, rotation = rows(width, 300), rotation_of(5, width)
    alone = np.concatenate([rotation.forward(given[i : i + 1]) for i in range(0, 300, 50)])
    assert rotation.forward(given)[::50].tobytes() == alone.tobytes()
    back = np.concatenate([rotation.inverse(given[i : i + 1]) for i in range(0, 300, 50)])
    assert rotation.inverse(given)[::50].tobytes() == back.tobytes()


def test_given_rows_stay_as_they_are_and_any_strides_are_taken() -> None:
    given = rows(576, 6)
    before = given.copy()
    whole = rotation_of(0, 576).forward(given)
    for num_rows in (1, 6):
        rotation_of(0, 576).forward(given[:num_rows])
        rotation_of(0, 576).inverse(given[:num_rows])
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(rotation_of(0, 576).forward(given[::2]), whole[::2])
    fortran = np.asfortranarray(given)
    np.testing.assert_array_equal(rotation_of(0, 576).forward(fortran), whole)


@pytest.mark.parametrize("width", [576, 896, 3584])
def test_one_feature_is_spread_over_the_whole_row(width: int) -> None:
    """No feature stays where it is: the largest value of each rotated unit row is small."""
    features = np.random.default_rng(0).choice(width, 64, replace=False)
    units = np.eye(width, dtype=np.float32)[features]
    assert np.abs(rotation_of(0, width).forward(units)).max() < 12 / math.sqrt(width)


def test_seeds_and_widths_give_different_rotations() -> None:
    given = rows(64)
    results = {Rotation(seed, 64).forward(given).tobytes() for seed in range(8)}
    assert len(results) == 8


@pytest.mark.parametrize(("num_rows", "width"), [(0, 576), (3, 0), (0, 0)])
def test_matrices_without_values_stay_empty(num_rows: int, width: int) -> None:
    empty = np.empty((num_rows, width), dtype=np.float32)
    assert rotation_of(0, width).forward(empty).shape == (num_rows, width)
    assert rotation_of(0, width).inverse(empty).shape == (num_rows, width)


def test_the_widest_row_is_rotated_and_restored() -> None:
    given = rows(MAX_ROTATED_WIDTH, 1)
    rotation = Rotation(0, MAX_ROTATED_WIDTH)
    np.testing.assert_allclose(rotation.inverse(rotation.forward(given)), given, atol=2e-5)


def test_the_bits_of_a_rotation_never_change() -> None:
    """Stored files name a rotation by its seed: another result here makes them unreadable."""
    given = np.arange(1, 8, dtype=np.float32)[None]
    expected = [-5, -6, 4.621320724487305, 0.3786797523498535, 3.535533905029297]
    expected += [2.1213202476501465, -6.3639607429504395]
    assert Rotation(0, 7).forward(given)[0].tolist() == expected
