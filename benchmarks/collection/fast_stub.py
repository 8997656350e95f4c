"""A replica for benchmarks: its answers are made before the first request.

    python -m benchmarks.collection.fast_stub --rows 256 --width 896

It reads nothing of a request but its path, its length, whether it accepts safetensors, and the seed
and id that its answer repeats, so the collector that is measured next to it is the limit. Prints
its port.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping

import numpy as np

from latentwire.latent import latent_info
from latentwire.number_formats import EncodedRows, encode_rows
from latentwire.protocol import PlanLatentResponse, Timings, Usage
from latentwire.safetensors_wire import pack
from latentwire.tensors import wire_tensor

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
# The values of a request that its answer repeats, and what stands in their places in a made answer.
_SEED, _ID = re.compile(rb'"seed": *(\d+)'), re.compile(rb'"task_id": *"(\w+)"')
_PLACE_OF_SEED, _PLACE_OF_ID = 2**63 - 1, "x" * 20
_MODEL = "stub"
# Of an answer with rows: more than its HTTP head and the JSON before the rows.
_HEAD_BYTES = 1 << 14
_JSON, _SAFETENSORS = "application/json", "application/x-safetensors"


def plan(encoded: EncodedRows) -> PlanLatentResponse:
    """Return an answer without its rows."""
    num_rows = len(encoded.values)
    return PlanLatentResponse(
        id="plan-0",
        model=_MODEL,
        task=None,
        task_id=_PLACE_OF_ID,
        plan="A plan. " * (num_rows // 2),
        k=None,
        hidden_state=wire_tensor(encoded),
        latent=latent_info(_MODEL, None, engine="latentwire"),
        token_ids=[1000 + i for i in range(num_rows)],
        finish_reason="stop",
        seed=_PLACE_OF_SEED,
        usage=Usage(prompt_tokens=40, completion_tokens=num_rows, latent_rows=num_rows),
        timings=Timings(queue_ms=0.0, prefill_ms=0.0, decode_ms=0.0),
    )


def answers(num_rows: int, width: int, max_slots: int) -> Mapping[str, bytes]:
    """Return all answers by path; that to a plan as nested lists has the name `lists`."""
    rows = np.random.default_rng(0).standard_normal((num_rows, width), dtype=np.float32)
    encoded = encode_rows(rows, "float32")
    response = plan(encoded)
    lists = response.model_dump(mode="json") | {"hidden_state": rows.tolist()}
    limits = {"max_slots": max_slots, "max_model_len": 4096, "max_queue": 64}
    info: dict[str, object] = {
        "model": _MODEL,
        "revision": None,
        "hidden_size": width,
        "vocab_size": 100,
        "dtype": "float32",
        "device": "cpu",
        "limits": limits | {"max_body_bytes": 1 << 20},
        "version": "0",
        "compressors": [],
    }
    return {
        "/plan_latent": _whole(pack(response, {"hidden_state": encoded}), _SAFETENSORS),
        "lists": _whole(json.dumps(lists).encode(), _JSON),
        "/info": _whole(json.dumps(info).encode(), _JSON),
        "/ready": _whole(b'{"status": "ready"}', _JSON),
        "/health": _whole(b'{"status": "ok"}', _JSON),
    }


def _whole(content: bytes, media_type: str) -> bytes:
    """Return an answer with a head like that of uvicorn."""
    head = (
        "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
        f"content-length: {len(content)}\r\ncontent-type: {media_type}\r\nx-request-id: row-0\r\n"
        "\r\n"
    )
    return head.encode() + content


def _requests(connection: socket.socket) -> Iterator[bytes]:
    """Yield the requests of one connection."""
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
        end = received.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(received)
        if end >= 4 and len(received) >= end + (int(length[1]) if length else 0):
            yield received
            received = b""


def _repeat(made: bytes, request: bytes) -> bytes:
    """Return the head of an answer with the seed and the id of the request, as long as it was.

    Args:
        made: the head of a safetensors answer, whose metadata are JSON in JSON.
        request: head and body.
    """
    seed, task_id = _SEED.search(request), _ID.search(request)
    if seed is not None:
        place = str(_PLACE_OF_SEED).encode()
        made = made.replace(place, seed[1].ljust(len(place)))
    if task_id is not None:
        place = b'\\"%s\\"' % _PLACE_OF_ID.encode()
        made = made.replace(place, (b'\\"%s\\"' % task_id[1]).ljust(len(place)))
    return made


def _serve(connection: socket.socket, known: Mapping[str, bytes]) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for request in _requests(connection):
                path = request.split(b" ", 2)[1].decode()
                wants_lists = path == "/plan_latent" and _SAFETENSORS.encode() not in request
                made = known["lists" if wants_lists else path]
                connection.sendall(_repeat(made[:_HEAD_BYTES], request))
                connection.sendall(memoryview(made)[_HEAD_BYTES:])
        except ConnectionError:
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--max-slots", type=int, default=16)
    args = parser.parse_args()
    known = answers(args.rows, args.width, args.max_slots)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        sys.stdout.write(f"{server.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_serve, args=(connection, known), daemon=True).start()


if __name__ == "__main__":
    main()
