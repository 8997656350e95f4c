"""`ReceivingClient` next to `AsyncClient`: whatever is sent, both give the same."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire import AsyncClient, LatentwireError, PlanLatent
from latentwire_batch.dispatch.verdicts import verdict_of
from latentwire_batch.journal.direct_file import BLOCK_BYTES
from latentwire_batch.receiving.buffers import BufferPool
from latentwire_batch.receiving.client import ReceivingClient
from support.batch.receiving import JSON, SAFETENSORS, chunked, http, in_json, packed, problem, rows
from support.batch.scripted_server import Script, ScriptedServer


def outcome_of(result: PlanLatent | LatentwireError, port: int) -> Any:
    """What a caller can tell of a result."""
    if isinstance(result, PlanLatent):
        parts = {**vars(result)}
        matrix = parts.pop("hidden_state")
        assert not matrix.flags.writeable
        return parts, matrix.shape, matrix.dtype, matrix.tobytes()
    facts = {
        name: vars(result)[name] for name in ("retry_after_s", "request_id") if name in vars(result)
    }
    return type(result), str(result).replace(str(port), "PORT"), verdict_of(result), facts


async def plan(client: AsyncClient) -> PlanLatent | LatentwireError:
    try:
        return await client.plan_latent("a", max_new_tokens=9)
    except LatentwireError as error:
        return error


async def both(scripts: Sequence[Script]) -> tuple[Any, Any]:
    """Return what httpx's client and the other one make of the same server."""
    options: dict[str, Any] = {"wire": "safetensors", "max_retries": 0, "timeout_s": 10}
    outcomes = []
    for further in ({}, {"pool": BufferPool()}):
        async with ScriptedServer(scripts) as server:
            kind: Callable[..., AsyncClient] = ReceivingClient if further else AsyncClient
            async with kind(server.base_url, **options, **further) as client:
                outcomes.append(outcome_of(await plan(client), server.port))
    return outcomes[0], outcomes[1]


HOSTILE_HEAD = (b"9" * 70_000).join([b"\xff\xff\xff\xff\xff\xff\xff\x7f", b""])
ANSWERS: dict[str, bytes | list[bytes]] = {
    "plain": http(packed()),
    "plain, in bytes": [bytes([each]) for each in http(packed())],
    "plain, head and body apart": [http(packed())[:120], http(packed())[120:]],
    "closing": http(packed(), SAFETENSORS, b"Connection: close"),
    "chunked": http(chunked(packed()), SAFETENSORS, b"Transfer-Encoding: chunked"),
    "gzip": http(gzip.compress(packed()), SAFETENSORS, b"Content-Encoding: gzip"),
    "deflate": http(zlib.compress(packed()), SAFETENSORS, b"Content-Encoding: deflate"),
    "damaged gzip": http(packed(), SAFETENSORS, b"Content-Encoding: gzip"),
    "until closed": b"HTTP/1.0 200 OK\r\nContent-Type: application/x-safetensors\r\n\r\n"
    + packed(),
    "line ends of Unix": http(packed()).replace(b"\r\n", b"\n", 3),
    "after 100": b"HTTP/1.1 100 Continue\r\n\r\n" + http(packed()),
    "after 103, twice": b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 2 + http(packed()),
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "more bytes than said": http(packed()) + b"more",
    "fewer bytes than said": http(packed())[:-1],
    "long head": http(packed(), SAFETENSORS, b"x: " + b"y" * 9000),
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000,
    "no answer": b"",
    "part of a head": b"HTTP/1.1 200 OK\r\nContent-",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "two lengths": http(packed(), SAFETENSORS, b"Content-Length: 1"),
    "negative length": http(packed()).replace(b"Content-Length: ", b"Content-Length: -"),
    "JSON": http(in_json(), JSON),
    "JSON in chunks": http(chunked(in_json()), JSON, b"Transfer-Encoding: chunked"),
    "safetensors called JSON": http(packed(), JSON),
    "JSON called safetensors": http(in_json()),
    "a page": http(b"<html>", b"text/html"),
    "nothing": http(b""),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "206": http(packed(), status=b"206 Partial Content"),
    "redirect": http(b"", JSON, b"Location: /elsewhere", status=b"307 X"),
    "gateway": http(b"bad gateway", b"text/plain", status=b"502 Bad Gateway"),
    "float16": http(packed("float16")),
    "bfloat16": http(packed("bfloat16")),
    "int8": http(packed("int8")),
    "int4": http(packed("int4")),
    "huge header of safetensors": http(HOSTILE_HEAD),
    "counts disagree": http(packed(finish_reason="stop", token_ids=[1])),
    "other k": http(packed(k=3)),
    "nan": http(packed().replace(rows().tobytes()[:4], np.float32("nan").tobytes())),
    **{
        code: problem(code, status)
        for code, status in [
            ("queue-full", 429),
            ("not-ready", 503),
            ("unauthorized", 401),
            ("internal", 500),
            ("invalid-request", 422),
            ("payload-too-large", 413),
            ("deadline-exceeded", 504),
        ]
    },
    "engine failed": problem("not-ready", 503, engine_failed=True),
    "refused field": problem("invalid-request", 422, field="temperature"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_means_the_same_as_over_httpx(name: str) -> None:
    answer = ANSWERS[name]
    pieces = answer if isinstance(answer, list) else [answer]
    expected, found = asyncio.run(both([Script(pieces)]))
    assert found == expected


def test_values_are_received_where_the_log_can_write_them_from() -> None:
    async def received() -> PlanLatent:
        async with (
            ScriptedServer([Script([http(packed())])]) as server,
            ReceivingClient(server.base_url, pool=BufferPool(), wire="safetensors") as client,
        ):
            return await client.plan_latent("a", max_new_tokens=9)

    assert asyncio.run(received()).hidden_state.ctypes.data % BLOCK_BYTES == 0


def _spliced(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for share, num_removed, added in changes:
        place = int(share * len(content))
        content = content[:place] + added + content[place + num_removed :]
    return content


_CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=3)), max_size=3
)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["plain", "chunked", "gzip", "JSON", "int8", "queue-full"]),
    _CHANGES,
    _CHANGES,
    st.integers(1, 4000),
)
def test_damaged_answers_mean_the_same_as_over_httpx(
    name: str,
    changes_of_head: list[tuple[float, int, bytes]],
    changes_of_body: list[tuple[float, int, bytes]],
    piece_bytes: int,
) -> None:
    answer = ANSWERS[name]
    assert isinstance(answer, bytes)
    head, end, body = answer.partition(b"\r\n\r\n")
    # Most of the body is values, where a change cannot be noticed.
    fields_end = body.find(b'"data_offsets"') + 40
    body = _spliced(body[:fields_end], changes_of_body) + body[fields_end:]
    sent = _spliced(head, changes_of_head) + end + body
    pieces = [sent[start : start + piece_bytes] for start in range(0, len(sent), piece_bytes)]
    expected, found = asyncio.run(both([Script(pieces)]))
    assert found == expected
