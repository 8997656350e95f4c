from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from latentwire.errors import ProtocolError
from latentwire.number_formats import encode_rows
from latentwire.protocol import PlanLatentResponse
from latentwire.safetensors_wire import pack, unpack


def packed(wire: Any, num_rows: int) -> bytes:
    response = PlanLatentResponse.model_validate(wire.plan_body(k=num_rows))
    return pack(response, {"hidden_state": encode_rows(wire.hidden_rows(num_rows), "float32")})


def unpacked(content: bytes) -> Any:
    """The rows of the full latent."""
    return unpack(content)[1]["hidden_state"]


def with_header(content: bytes, change: dict[str, Any], num_spaces: int = 0) -> bytes:
    """Change the tensor's description, and where its values start."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["hidden_state"] |= change
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + num_spaces)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize("num_rows", [1, 4])
def test_the_hidden_state_is_a_read_only_view_of_the_bytes(wire: Any, num_rows: int) -> None:
    content = packed(wire, num_rows)
    rows = unpacked(content)
    assert np.shares_memory(rows, np.frombuffer(content, np.uint8))
    assert rows.flags.aligned
    assert not rows.flags.writeable
    np.testing.assert_array_equal(rows, wire.hidden_rows(num_rows))


def test_an_empty_hidden_state_keeps_its_width(wire: Any) -> None:
    rows = unpacked(packed(wire, 0))
    assert rows.shape == (0, 3)
    assert rows.dtype == np.float32


@pytest.mark.parametrize("num_spaces", [1, 2, 3])
def test_values_that_are_not_aligned_become_an_aligned_copy(wire: Any, num_spaces: int) -> None:
    content = with_header(packed(wire, 4), {}, num_spaces)
    rows = unpacked(content)
    assert rows.flags.aligned
    assert not rows.flags.writeable
    assert not np.shares_memory(rows, np.frombuffer(content, np.uint8))
    np.testing.assert_array_equal(rows, wire.hidden_rows(4))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F16"},
        {"shape": [3, 4]},
        {"shape": [-4, -3]},
        {"shape": [12]},
        {"data_offsets": [0, 44]},
        {"data_offsets": [4, 52]},
        {"data_offsets": [0]},
    ],
)
def test_another_tensor_is_refused(wire: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="not those that its fields describe"):
        unpack(with_header(packed(wire, 4), change))


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a"', b"\xff", b""])
def test_a_header_that_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a safetensors file of a plan"):
        unpack(len(text).to_bytes(8, "little") + text)
