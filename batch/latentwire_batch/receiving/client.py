"""The client of a collection: `AsyncClient` that receives plans into the memory that is logged.

httpx makes several copies of an answer, and takes longer over a row than its bytes. So requests for
plans go over `Connection`, if nothing but HTTP itself is between this process and the replica. TLS,
proxies, cookies and large requests stay with httpx, and so does everything but plans.
"""

from __future__ import annotations

from typing import Any

import httpx
from pydantic_core import to_json

from latentwire import AsyncClient, InfoResponse, PlanLatent, ProtocolError, exchange
from latentwire.call import Call
from latentwire.constants import DEFAULT_CONNECT_TIMEOUT_S, JSON_MEDIA_TYPE
from latentwire.retry import Outcome
from latentwire_batch.receiving.buffers import BufferPool
from latentwire_batch.receiving.connection import Answer, PlainAnswer
from latentwire_batch.receiving.connections import Connections
from latentwire_batch.receiving.whole_answer import http_response

# Written in one piece, so that no answer can arrive before the request is sent.
_MAX_REQUEST_BYTES = 1 << 16
# The body is not read through the response.
_ELSEWHERE = httpx.AsyncByteStream()
# Of the fields of an answer besides its latent: text and numbers of each token, and what may come
# with them.
_BYTES_PER_TOKEN = 256
_MARGIN_BYTES = 16 << 20
# Before the replica has said how wide its rows are.
_MAX_ANSWER_BYTES = 2 << 30


class ReceivingClient(AsyncClient):
    """A client of one replica; arguments and errors are those of `AsyncClient`.

    Args:
        base_url: address of the service.
        pool: memory for answers, which the clients of a run may share.
        **options: see `AsyncClient`; no transport.
    """

    def __init__(self, base_url: str, *, pool: BufferPool, **options: Any) -> None:
        super().__init__(base_url, **options)
        self._hidden_size: int | None = None
        is_direct = not options.get("uses_proxy", True)
        values = exchange.http_options(base_url, options.get("api_key"), is_direct=is_direct)
        url = values["base_url"]
        self._connections: Connections | None = None
        self._head: tuple[bytes, bytes] | None = None
        # httpx makes a header of the user and password of an address.
        if url.scheme == "http" and values["proxy"] is None and not url.userinfo:
            self._connections = Connections(url.raw_host.decode(), url.port or 80, pool)

    async def plan_latent(self, task: str | None = None, **given: Any) -> PlanLatent:
        """Plan one task; see `AsyncClient`. An answer to another request is a ProtocolError."""
        plan = await super().plan_latent(task, **given)
        for name in ("seed", "task_id"):
            sent = given.get(name)
            if sent is not None and getattr(plan, name) != sent:
                # A connection that is one answer behind would stay so.
                self._drop_idle_connections()
                raise ProtocolError(f"answer {plan.id} has another {name} than the request")
        return plan

    async def info(self) -> InfoResponse:
        """Return what the service serves; raises like `plan_latent`."""
        info = await super().info()
        self._hidden_size = info.hidden_size
        return info

    async def aclose(self) -> None:
        """Close the connections."""
        self._drop_idle_connections()
        await super().aclose()

    def _drop_idle_connections(self) -> None:
        if self._connections is not None:
            self._connections.close()

    async def _attempt(self, call: Call, timeout_s: float, *, is_stream: bool = False) -> Outcome:
        connections = self._connections
        is_received_here = call.method == "POST" and not is_stream and not self._http.cookies
        request = self._request(call) if is_received_here and connections is not None else None
        if connections is None or request is None:
            return await super()._attempt(call, timeout_s, is_stream=is_stream)
        max_bytes = self._max_bytes(call, len(request))
        connect_timeout_s = min(timeout_s, DEFAULT_CONNECT_TIMEOUT_S)
        try:
            answer = await connections.exchange(request, timeout_s, connect_timeout_s, max_bytes)
            return self._outcome(answer, call, timeout_s, max_bytes)
        except httpx.RequestError as error:
            error.request = exchange.http_request(self._http, call, timeout_s)
            return error

    def _outcome(
        self, answer: Answer, call: Call, timeout_s: float, max_bytes: int
    ) -> httpx.Response:
        if isinstance(answer, PlainAnswer):
            extensions = {exchange.BODY_EXTENSION: answer.body}
            return httpx.Response(200, stream=_ELSEWHERE, extensions=extensions)
        request = exchange.http_request(self._http, call, timeout_s)
        response = http_response(answer, request, max_bytes)
        self._http.cookies.extract_cookies(response)
        return response

    def _request(self, call: Call) -> bytes | None:
        """Return a request as it is sent; None when it is too large for one piece."""
        content = call.content
        if content is None:
            content = to_json(call.body)
        if len(content) > _MAX_REQUEST_BYTES:
            return None
        if self._head is None:
            self._head = self._common_head(call)
        path, common = self._head
        query = b"" if call.params is None else str(httpx.QueryParams(call.params)).encode()
        target = path + b"?" * bool(query) + query
        headers = {"Accept": JSON_MEDIA_TYPE, "Content-Type": JSON_MEDIA_TYPE, **call.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
        length = b"Content-Length: %d\r\n\r\n" % len(content)
        return b"".join([b"POST ", target, b" HTTP/1.1\r\n", common, lines, length, content])

    def _common_head(self, call: Call) -> tuple[bytes, bytes]:
        """Return the path of plans, and the header lines that all requests share."""
        http = self._http.build_request(call.method, call.path)
        # A latent that is sent compressed costs more time than it saves.
        headers = {**http.headers, "accept-encoding": "identity"}
        for name in ("accept", "content-length"):
            headers.pop(name, None)
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        return http.url.raw_path, "".join(lines).encode("ascii")

    def _max_bytes(self, call: Call, request_bytes: int) -> int:
        """Return the size that no answer to a request exceeds."""
        num_tokens = (call.body or {}).get("max_new_tokens")
        if num_tokens is None or self._hidden_size is None:
            return _MAX_ANSWER_BYTES
        latent_bytes = num_tokens * (4 * self._hidden_size + _BYTES_PER_TOKEN)
        # The answer repeats the task, perhaps with escapes; base64 takes a third more.
        return 2 * (int(latent_bytes) + 12 * request_bytes + _MARGIN_BYTES)
