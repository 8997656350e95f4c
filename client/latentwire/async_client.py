"""The asyncio client: `Client` with awaits. What is said and understood is in `exchange`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Self, Unpack

import httpx

from latentwire import exchange
from latentwire.constants import (
    DEFAULT_BASE_URL,
    DEFAULT_MAX_RETRIES,
    DEFAULT_READY_TIMEOUT_S,
    DEFAULT_TIMEOUT_S,
    PROBE_TIMEOUT_S,
)
from latentwire.exchange import Call, PlanOptions, Wire
from latentwire.plan_latent import PlanLatent
from latentwire.protocol import InfoResponse
from latentwire.ready_wait import ReadyWait
from latentwire.retry import Outcome, retry_after_of, retry_delay, should_retry
from latentwire.streaming import AsyncPlanStream


class AsyncClient:
    """Asks one latentwire service from asyncio. Belongs to one event loop.

    Args:
        base_url: address of the service; a path prefix is kept.
        timeout_s: longest silence while waiting for an answer, in seconds.
        max_retries: exchanges after the first one; `latentwire.retry` says for which failures.
        api_key: sent as ``Authorization: Bearer``.
        wire: form of the answers to ask for; "safetensors" is smaller and faster for large latents,
            and a service that does not offer it answers with JSON.
        transport: replaces httpx's own.
        rng: source of the retry jitter.
        sleep: awaited; waits for a number of seconds.
        clock: monotonic seconds, for `wait_ready`.

    Raises:
        InvalidArgumentError: when an argument is out of its limits.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_MAX_RETRIES,
        api_key: str | None = None,
        wire: Wire = "json",
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s = exchange.check_timeout(timeout_s)
        self._wire = exchange.check_wire(wire)
        self._max_retries = exchange.check_max_retries(max_retries)
        self._rng = rng or random.Random()
        self._sleep = sleep
        self._clock = clock
        self._http = httpx.AsyncClient(
            transport=transport, **exchange.http_options(base_url, api_key)
        )

    async def plan_latent(
        self,
        task: str,
        *,
        k: int | None = None,
        task_id: str | None = None,
        request_id: str | None = None,
        **options: Unpack[PlanOptions],
    ) -> PlanLatent:
        """Plan one task.

        Args:
            task: the task, in words.
            k: hidden rows to keep; None: all, 0: text only.
            task_id: returned as given.
            request_id: names the request in the service's log; one is made up if absent.
            **options: prompt and sampling parameters; the service's defaults where left out.

        Raises:
            InvalidArgumentError: when an argument is out of its limits; nothing is sent.
            ApiError: when the service refuses or fails; its subclasses say how.
            TransportError: when no whole answer comes.
            ProtocolError: when the answer breaks the wire contract.
        """
        call = exchange.plan_latent_call(
            task, k, task_id, options, request_id=request_id, wire=self._wire
        )
        return exchange.read_plan_latent(await self._exchange(call), call)

    def stream_plan_latent(
        self,
        task: str,
        *,
        k: int | None = None,
        task_id: str | None = None,
        request_id: str | None = None,
        **options: Unpack[PlanOptions],
    ) -> AsyncPlanStream:
        """Plan one task, and get each token and its hidden row when it is made.

        Iterate the stream for its steps; afterwards its `plan` is what `plan_latent` returns. Leave
        its `with` block, or close it, to give the request up. Arguments and errors are those of
        `plan_latent`; all but InvalidArgumentError come while iterating.
        """
        call = exchange.plan_latent_call(
            task, k, task_id, options, request_id=request_id, stream=True
        )

        async def opened() -> httpx.Response:
            return exchange.read_stream(await self._exchange(call, is_stream=True))

        return AsyncPlanStream(call, opened)

    async def info(self) -> InfoResponse:
        """Ask what the service serves; raises like `plan_latent`."""
        return exchange.read_info(await self._exchange(exchange.INFO))

    async def health(self) -> bool:
        """Tell whether the service's process lives; asks once."""
        return await self._unready_reason(exchange.HEALTH, PROBE_TIMEOUT_S) is None

    async def ready(self) -> bool:
        """Tell whether the service can take work now; asks once."""
        return await self._unready_reason(exchange.READY, PROBE_TIMEOUT_S) is None

    async def wait_ready(self, timeout_s: float = DEFAULT_READY_TIMEOUT_S) -> None:
        """Return as soon as the service can take work.

        Raises:
            WaitTimeoutError: when it cannot after `timeout_s` seconds.
            ApiError: for an answer that waiting does not mend, such as 401.
            ProtocolError: when something else answers there.
        """
        wait = ReadyWait(exchange.check_timeout(timeout_s), self._clock)
        while True:
            reason = await self._unready_reason(exchange.READY, wait.probe_timeout_s)
            if reason is None:
                return
            await self._sleep(wait.pause_s(reason))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.aclose()

    async def _exchange(self, call: Call, *, is_stream: bool = False) -> Outcome:
        attempt = 0
        while True:
            outcome = await self._attempt(call, self._timeout_s, is_stream=is_stream)
            if not should_retry(outcome, attempt, self._max_retries):
                return outcome
            asked_s = retry_after_of(outcome, now_s=time.time())
            await self._sleep(retry_delay(attempt, asked_s, self._rng))
            attempt += 1

    async def _unready_reason(self, call: Call, timeout_s: float) -> str | None:
        return exchange.unready_reason(await self._attempt(call, min(timeout_s, self._timeout_s)))

    async def _attempt(self, call: Call, timeout_s: float, *, is_stream: bool = False) -> Outcome:
        request = self._http.build_request(
            call.method,
            call.path,
            params=call.params,
            json=call.body,
            headers=call.headers,
            timeout=exchange.http_timeout(timeout_s),
        )
        try:
            response = await self._http.send(request, stream=is_stream)
            if not response.is_success:
                # An error is read whole, and its connection given back.
                await response.aread()
        except httpx.RequestError as error:
            return error
        return response
