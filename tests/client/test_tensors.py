from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from latentwire.errors import ProtocolError
from latentwire.protocol import HiddenState
from latentwire.tensors import decode_hidden_state, encode_base64

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
