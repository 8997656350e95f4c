"""A replica for benchmarks: its answers are made before the first request.

    python -m benchmarks.fast_stub --port 8100 --rows 256 --width 896

It parses nothing of a request but its length and its task id, and writes one precomputed answer to
all of them, so that a collector that is measured next to it is the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import sys

import numpy as np

from latentwire.latent import latent_info
from latentwire.number_formats import encode_rows
from latentwire.protocol import PlanLatentResponse, Timings, Usage
from latentwire.safetensors_wire import pack
from latentwire.tensors import wire_tensor

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MODEL = "stub"


def answer(num_rows: int, width: int) -> bytes:
    """Return a plan of random rows, as a service answers it."""
    rows = np.random.default_rng(0).standard_normal((num_rows, width), dtype=np.float32)
    encoded = encode_rows(rows, "float32")
    response = PlanLatentResponse(
        id="plan-0",
        model=_MODEL,
        task=None,
        task_id=None,
        plan="A plan. " * (num_rows // 2),
        k=None,
        hidden_state=wire_tensor(encoded),
        latent=latent_info(_MODEL, None, engine="latentwire"),
        token_ids=[1000 + i for i in range(num_rows)],
        finish_reason="stop",
        seed=1,
        usage=Usage(prompt_tokens=40, completion_tokens=num_rows, latent_rows=num_rows),
        timings=Timings(queue_ms=0.0, prefill_ms=0.0, decode_ms=0.0),
    )
    return pack(response, {"hidden_state": encoded})


def info(width: int, max_slots: int) -> bytes:
    """Return the answer to `/info`."""
    limits = {"max_slots": max_slots, "max_model_len": 4096, "max_queue": 64}
    facts: dict[str, object] = {
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
    return json.dumps(facts).encode()


def whole(content: bytes, media_type: str) -> bytes:
    """Return an answer with its head, like that of uvicorn."""
    head = (
        "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
        f"content-length: {len(content)}\r\ncontent-type: {media_type}\r\nx-request-id: row-0\r\n"
        "\r\n"
    )
    return head.encode() + content


class Stub(asyncio.Protocol):
    """One connection.

    Args:
        answers: by method and path.
    """

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Make room for a whole answer."""
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end]
            length = _LENGTH.search(head)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < size:
                return
            self._received = self._received[size:]
            path = head.split(b" ", 2)[1].partition(b"?")[0]
            assert isinstance(self._transport, asyncio.Transport)
            self._transport.write(self._answers[path])


async def serve(port: int, num_rows: int, width: int, max_slots: int) -> None:
    plan = whole(answer(num_rows, width), "application/x-safetensors")
    answers = {
        b"/plan_latent": plan,
        b"/info": whole(info(width, max_slots), "application/json"),
        b"/ready": whole(b'{"status": "ready"}', "application/json"),
        b"/health": whole(b'{"status": "ok"}', "application/json"),
    }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stub(answers), "127.0.0.1", port)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--max-slots", type=int, default=16)
    args = parser.parse_args()
    asyncio.run(serve(args.port, args.rows, args.width, args.max_slots))


if __name__ == "__main__":
    main()
