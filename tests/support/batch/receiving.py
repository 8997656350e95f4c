"""Answers of a replica as bytes, well formed and not."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from latentwire.number_formats import NumberFormat, encode_rows
from latentwire.protocol import PlanLatentResponse
from latentwire.safetensors_wire import pack
from latentwire.tensors import encode_hidden_state, wire_tensor
from support.batch.stub_answers import Behaviour, answer_of

ROWS, WIDTH = 5, 24
SAFETENSORS, JSON = b"application/x-safetensors", b"application/json"


def fields(**changes: Any) -> dict[str, Any]:
    behaviour = Behaviour(hidden_size=WIDTH, steps=ROWS)
    answer, _ = answer_of(behaviour, {"task": "a", "seed": 1, "max_new_tokens": 9}, None)
    return answer | changes


@cache
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)


def packed(dtype: NumberFormat = "float32", **changes: Any) -> bytes:
    encoded = encode_rows(rows(), dtype)
    sent = wire_tensor(encoded).model_dump()
    response = PlanLatentResponse.model_validate(fields(hidden_state=sent, **changes))
    return pack(response, {"hidden_state": encoded})


def in_json() -> bytes:
    sent = encode_hidden_state(rows()).model_dump(mode="json")
    return json.dumps(fields(hidden_state=sent)).encode()


def http(
    content: bytes, media_type: bytes = SAFETENSORS, *lines: bytes, status: bytes = b"200 OK"
) -> bytes:
    length = [] if any(b"ransfer" in line for line in lines) else [b"%d" % len(content)]
    head = [b"HTTP/1.1 " + status, b"Content-Type: " + media_type, *lines]
    head += [b"Content-Length: " + each for each in length]
    return b"\r\n".join([*head, b"", content])


def chunked(content: bytes) -> bytes:
    pieces = [content[start : start + 100] for start in range(0, len(content), 100)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def problem(code: str, status: int, **members: Any) -> bytes:
    body = {"title": "t", "status": status, "code": code, "detail": "d", **members}
    return http(
        json.dumps(body).encode(),
        b"application/problem+json",
        b"Retry-After: 7",
        b"X-Request-Id: r1",
        status=b"%d X" % status,
    )
