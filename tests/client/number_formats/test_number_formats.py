from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from latentwire.errors import NumberFormatError
from latentwire.number_formats import (
    NUMBER_FORMATS,
    EncodedRows,
    NumberFormat,
    decode_rows,
    encode_rows,
    from_bfloat16,
    stored_width,
    to_bfloat16,
)
from latentwire.rotation import MAX_ROTATED_WIDTH, rotation_of

WIDTHS = [*range(1, 71), 576, 896, 3584]
MAX_CODES: dict[NumberFormat, int] = {"int8": 127, "int4": 7}
SPECIAL = [
    *(0x0000_0000, 0x8000_0000, 0x0000_0001, 0x8000_0001, 0x0000_7FFF, 0x0000_8000, 0x0000_8001),
    *(0x007F_FFFF, 0x0080_0000, 0x3F80_0000, 0x3F80_7FFF, 0x3F80_8000, 0x3F80_8001, 0x3F81_8000),
    *(0x7F7F_0000, 0x7F7F_7FFF, 0x7F7F_8000, 0x7F7F_FFFF, 0x7F80_0000, 0xFF80_0000, 0xFF7F_FFFF),
    *(0x7F80_0001, 0x7FC0_0000, 0xFFC0_0000, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x7FBF_FFFF, 0xFF80_0001),
]
Make = Callable[[np.random.Generator, int, int], Any]


def normal(rng: np.random.Generator, num_rows: int, width: int) -> np.ndarray:
    return rng.standard_normal((num_rows, width))


def heavy(rng: np.random.Generator, num_rows: int, width: int) -> np.ndarray:
    return rng.standard_t(2.5, (num_rows, width))


def outlier(size: float) -> Make:
    def make(rng: np.random.Generator, num_rows: int, width: int) -> np.ndarray:
        rows = normal(rng, num_rows, width)
        rows[np.arange(num_rows), rng.integers(width, size=num_rows)] = size
        return rows

    return make


MADE: dict[str, Make] = {
    "normal": normal,
    "heavy-tailed": heavy,
    "one outlier": outlier(30),
    "one huge outlier": outlier(1e4),
    "constant": lambda _, n, width: np.full((n, width), -2.5),
    "zero": lambda _, n, width: np.zeros((n, width)),
    "negative zero": lambda _, n, width: np.full((n, width), -0.0),
    "one value": lambda _, n, width: np.eye(n, width) * 3,
    "large": lambda rng, n, width: normal(rng, n, width) * 1e33,
    "small": lambda rng, n, width: normal(rng, n, width) * 1e-29,
    "mixed": lambda rng, n, width: normal(rng, n, width) * 10.0 ** rng.integers(-25, 25, (n, 1)),
}


def made(name: str, width: int, num_rows: int = 7) -> Any:
    return MADE[name](np.random.default_rng(width), num_rows, width).astype(np.float32)


def errors(rows: np.ndarray, encoded: EncodedRows) -> Any:
    """The distance of each row from its decoded one."""
    return np.linalg.norm(decode_rows(encoded).astype(np.float64) - rows, axis=1)


def bounds(rows: np.ndarray, encoded: EncodedRows) -> Any:
    """The documented bound: half a step for each value, and rounding of float32."""
    assert encoded.scales is not None
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    return encoded.scales / 2 * math.sqrt(rows.shape[1]) + 2.0**-20 * lengths


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("format", MAX_CODES)
@pytest.mark.parametrize("rotation", [None, 0, 7])
def test_the_error_of_a_row_is_within_half_a_step_per_value(
    name: str, format: NumberFormat, rotation: int | None
) -> None:
    for width in WIDTHS:
        rows = made(name, width)
        encoded = encode_rows(rows, format, rotation=rotation)
        assert encoded.values.shape == (7, stored_width(format, width))
        assert (errors(rows, encoded) <= bounds(rows, encoded)).all(), width
        assert (bounds(rows, encoded) <= documented_scale_bounds(rows, encoded)).all(), width


def documented_scale_bounds(rows: np.ndarray, encoded: EncodedRows) -> Any:
    """The bound by the rows alone: no rotated value is larger than its row is long."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    largest = np.abs(rows).max(axis=1) if encoded.rotation is None else lengths
    half_steps = largest / MAX_CODES[encoded.format] / 2 * math.sqrt(rows.shape[1])
    return half_steps * (1 + 2.0**-20) + 2.0**-20 * lengths


@pytest.mark.parametrize("format", MAX_CODES)
def test_without_rotation_each_value_is_within_half_a_step(format: NumberFormat) -> None:
    rows = made("heavy-tailed", 576)
    encoded = encode_rows(rows, format, rotation=None)
    assert encoded.scales is not None
    np.testing.assert_allclose(
        encoded.scales, np.abs(rows).max(axis=1) / MAX_CODES[format], rtol=1e-6
    )
    steps = np.abs(decode_rows(encoded) - rows) / encoded.scales[:, None]
    assert steps.max() <= 0.5 + 1e-5


@pytest.mark.parametrize("format", MAX_CODES)
@pytest.mark.parametrize("rotation", [None, 0])
@pytest.mark.parametrize("power", [-149, -148, -140, -130, -127, -120, 100, 110, 120])
def test_denormal_and_huge_rows_are_kept(
    format: NumberFormat, rotation: int | None, power: int
) -> None:
    rows = np.ldexp(made("normal", 70), power).astype(np.float32)
    encoded = encode_rows(rows, format, rotation=rotation)
    assert encoded.scales is not None
    # A stored value is at most half of the smallest float32 away from the exact one, twice.
    allowed = bounds(rows, encoded) + math.sqrt(70) * 2.0**-149
    assert (errors(rows, encoded) <= allowed).all()


@pytest.mark.parametrize("format", MAX_CODES)
def test_the_largest_float32_values_stay_finite(format: NumberFormat) -> None:
    largest = np.finfo(np.float32).max
    rows = np.array([[largest, -largest, 0.0], [1.0, 2.0, 3.0]], dtype=np.float32)
    decoded = decode_rows(encode_rows(rows, format))
    assert np.isfinite(decoded).all()
    np.testing.assert_allclose(decoded[0] / largest, [1, -1, 0], atol=0.3)


@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_not_finite_never_gives_finite_rows(scale: float) -> None:
    scales = np.array([1.0, scale, np.finfo(np.float32).max], dtype=np.float32)
    codes = np.full((3, 4), 100, dtype=np.int8)
    decoded = decode_rows(EncodedRows("int8", codes, scales, 4))
    assert np.isfinite(decoded).all(axis=1).tolist() == [True, False, True]


def test_a_row_whose_scale_is_beyond_float32_is_refused_by_name() -> None:
    direction = rotation_of(0, 40_000).inverse(np.eye(1, 40_000, dtype=np.float32))
    rows = np.sign(direction) * np.finfo(np.float32).max
    with pytest.raises(NumberFormatError, match="row 1 is too large") as caught:
        encode_rows(np.concatenate([np.zeros_like(rows), rows]), "int4")
    assert caught.value.row == 1


@pytest.mark.parametrize("format", NUMBER_FORMATS)
@pytest.mark.parametrize("rotation", [None, 0])
@pytest.mark.parametrize("shape", [(0, 576), (0, 1), (0, 0), (3, 0)])
def test_matrices_without_values_come_back(
    format: NumberFormat, rotation: int | None, shape: tuple[int, int]
) -> None:
    encoded = encode_rows(np.empty(shape, dtype=np.float32), format, rotation=rotation)
    assert decode_rows(encoded).shape == shape
    assert decode_rows(encoded).dtype == np.float32


@pytest.mark.parametrize("format", NUMBER_FORMATS)
@pytest.mark.parametrize("width", [1, 5, 576, 3584])
def test_a_row_has_the_same_bytes_alone_and_among_others(format: NumberFormat, width: int) -> None:
    rows = made("heavy-tailed", width, 200)
    whole = encode_rows(rows, format)
    for index in (0, 63, 199):
        alone = encode_rows(rows[index : index + 1], format)
        assert alone.values.tobytes() == whole.values[index].tobytes()
        assert decode_rows(alone).tobytes() == decode_rows(whole)[index].tobytes()
        if whole.scales is not None and alone.scales is not None:
            assert alone.scales[0] == whole.scales[index]


@pytest.mark.parametrize("format", NUMBER_FORMATS)
def test_the_given_matrix_is_never_written_and_may_have_any_strides(format: NumberFormat) -> None:
    rows = made("heavy-tailed", 70, 8)
    before = rows.copy()
    rows.flags.writeable = False
    expected = decode_rows(encode_rows(rows, format))
    np.testing.assert_array_equal(rows, before)
    strided = np.asfortranarray(rows)
    np.testing.assert_array_equal(decode_rows(encode_rows(strided, format)), expected)
    np.testing.assert_array_equal(decode_rows(encode_rows(rows[::2], format)), expected[::2])


@pytest.mark.parametrize("format", NUMBER_FORMATS)
def test_encoding_decoded_rows_again_changes_little(format: NumberFormat) -> None:
    once = decode_rows(encode_rows(made("normal", 576), format))
    again = decode_rows(encode_rows(once, format))
    tolerance = 0.0 if format in ("float32", "float16", "bfloat16") else 1e-5
    np.testing.assert_allclose(again, once, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["heavy-tailed", "one outlier"])
@pytest.mark.parametrize("width", [576, 896, 3584])
@pytest.mark.parametrize("format", MAX_CODES)
def test_rotation_loses_less_on_heavy_tails(name: str, width: int, format: NumberFormat) -> None:
    """An outlier that is longer than the rest of its row by far is kept better without."""
    rows = made(name, width, 40)
    rotated = errors(rows, encode_rows(rows, format))
    plain = errors(rows, encode_rows(rows, format, rotation=None))
    assert np.median(rotated) < np.median(plain)


@given(
    hypothesis_numpy.arrays(
        np.float32,
        st.tuples(st.integers(0, 4), st.integers(1, 70)),
        elements=st.floats(-(2.0**90), 2.0**90, width=32, allow_subnormal=False),
    ),
    st.sampled_from(list(MAX_CODES)),
    st.sampled_from([None, 0, 3]),
)
def test_the_bound_holds_for_any_rows(
    rows: np.ndarray, format: NumberFormat, rotation: int | None
) -> None:
    encoded = encode_rows(rows, format, rotation=rotation)
    allowed = bounds(rows, encoded) + math.sqrt(rows.shape[1]) * 2.0**-149
    assert (errors(rows, encoded) <= allowed).all()


# --- float16 and bfloat16


def every_pattern() -> np.ndarray:
    """Special values, and random patterns of bits of every exponent."""
    random = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32)
    return np.concatenate([np.array(SPECIAL, dtype=np.uint32), random]).view(np.float32)


def test_bfloat16_rounds_as_torch_does() -> None:
    values = every_pattern()
    expected = torch.from_numpy(values).to(torch.bfloat16)
    ours = from_bfloat16(to_bfloat16(values))
    np.testing.assert_array_equal(ours, expected.float().numpy())
    is_number = ~np.isnan(values)
    bits = expected.view(torch.uint16).numpy()
    np.testing.assert_array_equal(to_bfloat16(values)[is_number], bits[is_number])


def test_every_bfloat16_value_survives() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    values = from_bfloat16(bits)
    expected = torch.from_numpy(bits.copy()).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(values, expected)
    is_number = ~np.isnan(values)
    np.testing.assert_array_equal(to_bfloat16(values)[is_number], bits[is_number])


def test_float16_is_that_of_numpy_and_torch() -> None:
    values = every_pattern()
    values = values[np.abs(values) < 65520][None]
    encoded = encode_rows(values, "float16")
    np.testing.assert_array_equal(encoded.values, values.astype(np.float16))
    np.testing.assert_array_equal(encoded.values, torch.from_numpy(values).half().numpy())
    np.testing.assert_array_equal(decode_rows(encoded), values.astype(np.float16).astype("f4"))


@pytest.mark.parametrize(("format", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_the_relative_error_is_half_a_unit_in_the_last_place(
    format: NumberFormat, bits: int
) -> None:
    rows = np.random.default_rng(0).uniform(0.5, 60_000, (50, 577)).astype(np.float32)
    relative = np.abs(decode_rows(encode_rows(rows, format)) - rows) / rows
    assert relative.max() <= 2.0**-bits


@pytest.mark.parametrize(
    ("format", "value", "shown"),
    [
        ("float16", 65520.0, "65520 at position 2, beyond the largest float16 value, 65504"),
        ("float16", -1e9, "-1e\\+09 at position 2, beyond"),
        ("bfloat16", 3.4e38, "3.4e\\+38 at position 2, beyond the largest bfloat16 value"),
        *((format, np.nan, "nan at position 2, which is not finite") for format in MAX_CODES),
        ("float16", np.inf, "inf at position 2, which is not finite"),
        ("bfloat16", -np.inf, "-inf at position 2, which is not finite"),
    ],
)
def test_an_error_names_the_row_and_the_value(
    format: NumberFormat, value: float, shown: str
) -> None:
    rows = np.zeros((5, 4), dtype=np.float32)
    rows[3, 2] = value
    with pytest.raises(NumberFormatError, match=f"^row 3 holds {shown}") as caught:
        encode_rows(rows, format)
    assert caught.value.row == 3


def test_the_largest_float16_values_are_kept() -> None:
    rows = np.array([[65504, -65504, np.nextafter(np.float32(65520), np.float32(0))]], np.float32)
    np.testing.assert_array_equal(
        decode_rows(encode_rows(rows, "float16")), [[65504, -65504, 65504]]
    )


def test_float32_is_kept_bit_for_bit_without_a_copy() -> None:
    rows = every_pattern()[:576].reshape(2, 288)
    encoded = encode_rows(rows, "float32")
    assert np.shares_memory(encoded.values, rows)
    assert decode_rows(encoded).tobytes() == rows.tobytes()


# --- the stored bytes


def test_int4_has_two_codes_per_byte_the_first_in_the_low_bits() -> None:
    rows = np.array([[7.0, -7.0, 1.0, 0.0, -2.0]], dtype=np.float32)
    encoded = encode_rows(rows, "int4", rotation=None)
    assert encoded.scales is not None
    assert encoded.scales.tolist() == [1.0]
    assert encoded.values.tolist() == [[0x1F, 0x89, 0x86]]
    assert encoded.values.dtype == np.uint8
    np.testing.assert_array_equal(decode_rows(encoded), rows)


def test_codes_that_no_writer_makes_have_a_value_too() -> None:
    scales = np.array([2.0], dtype=np.float32)
    int8 = EncodedRows("int8", np.array([[-128, 127]], dtype=np.int8), scales, 2)
    np.testing.assert_array_equal(decode_rows(int8), [[-256, 254]])
    int4 = EncodedRows("int4", np.array([[0xF0]], dtype=np.uint8), scales, 2)
    np.testing.assert_array_equal(decode_rows(int4), [[-16, 14]])


@pytest.mark.parametrize("format", NUMBER_FORMATS)
@pytest.mark.parametrize("width", [1, 2, 575, 576])
def test_sizes_are_those_of_the_table(format: NumberFormat, width: int) -> None:
    sizes = {
        "float32": 4 * width,
        "float16": 2 * width,
        "bfloat16": 2 * width,
        "int8": width + 4,
        "int4": (width + 1) // 2 + 4,
    }
    assert encode_rows(made("normal", width), format).nbytes == 7 * sizes[format]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"width": 5}, "are not rows of 5 int8 values"),
        ({"scales": None}, "int8 needs scales"),
        ({"scales": np.ones(3, np.float32)}, "3 scales for 2 rows"),
        ({"scales": np.ones((2, 1), np.float32)}, "scales"),
        ({"format": "bfloat16", "scales": None, "rotation": 0}, "bfloat16 is never rotated"),
        ({"format": "float16"}, "float16 has no scales"),
        ({"rotation": -1}, "rotation must be from 0"),
        ({"rotation": 2**31}, "rotation must be from 0"),
        ({"values": np.zeros(4, np.int8)}, "are not rows of"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(change: dict[str, Any], match: str) -> None:
    fields: dict[str, Any] = {
        "format": "int8",
        "values": np.zeros((2, 4), np.int8),
        "scales": np.ones(2, np.float32),
        "width": 4,
        "rotation": None,
    }
    with pytest.raises(ValueError, match=match):
        decode_rows(EncodedRows(**(fields | change)))


def test_rows_that_are_too_wide_to_be_rotated_are_refused_before_memory_is_taken() -> None:
    width = MAX_ROTATED_WIDTH + 1
    wide = np.zeros((1, width), dtype=np.float32)
    with pytest.raises(ValueError, match=f"rows of {width} values are not rotated"):
        encode_rows(wide, "int8")
    assert decode_rows(encode_rows(wide, "int8", rotation=None)).shape == (1, width)
