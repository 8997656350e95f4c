from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from latentwire.errors import NumberFormatError, ProtocolError
from latentwire.number_formats import (
    NUMBER_FORMATS,
    NumberFormat,
    decode_rows,
    encode_rows,
)
from latentwire.protocol import HiddenState
from latentwire.tensors import (
    TensorError,
    decode_hidden_state,
    encode_base64,
    encode_hidden_state,
)

# 48 KiB pieces hold 12288 float32 values: sizes on, before, after and far over the boundary.
SHAPES = [(0, 576), (1, 1), (5, 3), (1, 12287), (1, 12288), (1, 12289), (3, 12288), (97, 576)]


def rows(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def on_wire(data: str, shape: tuple[int, int]) -> HiddenState:
    return HiddenState(data=data, shape=shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_join_to_the_base64_of_the_whole(shape: tuple[int, int]) -> None:
    matrix = rows(shape)
    assert encode_base64(matrix) == base64.b64encode(matrix.astype("<f4").tobytes())


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_returns_the_encoded_bits(shape: tuple[int, int]) -> None:
    matrix = rows(shape)
    decoded = decode_hidden_state(on_wire(encode_base64(matrix).decode(), shape))
    assert decoded.dtype == np.float32
    assert decoded.shape == shape
    assert decoded.tobytes() == matrix.tobytes()


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[:, ::-1], np.s_[1:3, 2:5]])
def test_strided_views_are_encoded_in_c_order(view: Any) -> None:
    strided = rows((8, 6))[view]  # any index expression will do
    assert not strided.flags.c_contiguous
    assert encode_base64(strided) == base64.b64encode(np.ascontiguousarray(strided).tobytes())


def test_big_endian_rows_are_sent_little_endian() -> None:
    matrix = rows((2, 3))
    assert encode_base64(matrix.astype(">f4")) == encode_base64(matrix)


def test_decoded_rows_are_a_read_only_view() -> None:
    matrix = rows((2, 3))
    decoded = decode_hidden_state(on_wire(encode_base64(matrix).decode(), (2, 3)))
    assert not decoded.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        decoded[0, 0] = 1


@pytest.mark.parametrize(
    "data",
    ["AAAA*AAA", "AAAAAA", "AAAAAA=", "AA==AAAA", "AAAA\nAAA", "AAAAA-_=", "é"],
)
def test_data_that_is_not_strict_base64_is_refused(data: str) -> None:
    with pytest.raises(ProtocolError, match="not base64"):
        decode_hidden_state(on_wire(data, (1, 1)))


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (0, 0), (-1, -1), (1, -1), (-2, 1)])
def test_data_of_another_size_than_the_shape_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match="holds 4 bytes"):
        decode_hidden_state(on_wire(base64.b64encode(bytes(4)).decode(), shape))


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
@pytest.mark.parametrize("rotation", [None, 0, 9])
@pytest.mark.parametrize("shape", [(0, 576), (1, 1), (5, 3), (4, 576)])
def test_each_dtype_travels_as_json(
    dtype: NumberFormat, rotation: int | None, shape: tuple[int, int]
) -> None:
    matrix = rows(shape)
    sent = encode_hidden_state(matrix, dtype, rotation=rotation).model_dump_json()
    received = HiddenState.model_validate_json(sent)
    assert received.shape == shape
    decoded = decode_hidden_state(received)
    assert decoded.dtype == np.float32
    expected = decode_rows(encode_rows(matrix, dtype, rotation=rotation))
    assert decoded.tobytes() == expected.tobytes()
    assert decoded.shape == shape


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_a_wire_tensor_has_scales_and_rotation_only_where_they_mean_something(
    dtype: NumberFormat,
) -> None:
    fields = encode_hidden_state(rows((2, 4)), dtype).model_dump(mode="json").keys()
    further = {"scales", "rotation"} if dtype in ("int8", "int4") else set()
    assert fields == {"data", "dtype", "byteorder", "shape"} | further
    if further:
        assert "rotation" not in encode_hidden_state(rows((2, 4)), dtype, rotation=None).model_dump(
            mode="json"
        )


def test_a_value_beyond_the_dtype_is_an_error_that_names_the_row() -> None:
    with pytest.raises(NumberFormatError, match="row 1 holds 70000 at position 2"):
        encode_hidden_state(np.array([[0, 0, 0], [0, 0, 70000]], np.float32), "float16")


@pytest.mark.parametrize(
    ("change", "field", "match"),
    [
        ({"scales": None}, "scales", "is required with the dtype int8"),
        ({"scales": "AAAA"}, "scales", "holds 3 bytes; 2 rows need 8 bytes"),
        ({"scales": "*"}, "scales", "is not base64"),
        ({"dtype": "float16"}, "data", r"holds 6 bytes; shape \[2, 3\] float16 needs 12 bytes"),
        ({"dtype": "int4"}, "data", r"holds 6 bytes; shape \[2, 3\] int4 needs 4 bytes"),
        ({"dtype": "bfloat16", "shape": (1, 3)}, "rotation", "bfloat16 is never rotated"),
        (
            {"dtype": "bfloat16", "shape": (1, 3), "rotation": None},
            "scales",
            "must be left out with the dtype bfloat16",
        ),
        ({"shape": (0, 2**40), "data": "", "scales": ""}, "data", "holds 0 bytes"),
        ({"data": "!"}, "data", "is not base64"),
        (
            {"data": encode_base64(rows((1, 70_000))).decode(), "shape": (4, 70_000)},
            "rotation",
            "at most 65536",
        ),
    ],
)
def test_a_tensor_that_contradicts_itself_names_the_field(
    change: dict[str, Any], field: str, match: str
) -> None:
    good = encode_hidden_state(rows((2, 3)), "int8")
    with pytest.raises(TensorError, match=match) as caught:
        decode_hidden_state(HiddenState.model_validate({**good.model_dump(), **change}))
    assert caught.value.field == field
    assert str(caught.value).startswith(f"hidden_state.{field} ")
