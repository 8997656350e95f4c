"""The blocking client: sends, waits and closes. `exchange` builds requests and reads answers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Self, Unpack

import httpx

from latentwire import exchange
from latentwire.call import Call, MessageList, PlanOptions, Wire, plan_latent_call
from latentwire.constants import (
    DEFAULT_BASE_URL,
    DEFAULT_READY_TIMEOUT_S,
    DEFAULT_RETRY_TIMEOUT_S,
    DEFAULT_TIMEOUT_S,
    PROBE_TIMEOUT_S,
)
from latentwire.errors import LatentwireError
from latentwire.plan_latent import PlanLatent
from latentwire.protocol import InfoResponse
from latentwire.ready_wait import ReadyWait
from latentwire.retry import Outcome, RetryPolicy
from latentwire.streaming import PlanStream


class Client:
    """Client of one latentwire service. Threads may share it.

    Args:
        base_url: address of the service; a path prefix is kept.
        timeout_s: maximum silence while waiting for an answer, in seconds.
        retry_timeout_s: seconds from the beginning of a call within which a busy service (429, 503)
            gets the request again. `Retry-After` sets the pauses.
        max_retries: attempts after the first one; None: a busy service has no limit but the time,
            and a broken connection is retried 4 times.
        api_key: sent as ``Authorization: Bearer``.
        wire: preferred form of the answers; "safetensors" is smaller and faster for large latents.
            A service that does not offer it answers with JSON.
        uses_proxy: False connects directly, regardless of proxy variables. This machine
            and the hosts of NO_PROXY are always reached directly.
        transport: replaces httpx's own transport.
        on_retry: called before the pause of each retry, with the error and the pause in seconds.
        rng: source of the retry jitter.
        sleep: waits for a number of seconds.
        clock: monotonic seconds.

    Raises:
        InvalidArgumentError: when an argument is out of its limits, or the environment holds a
            proxy or certificates that cannot be used.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_timeout_s: float = DEFAULT_RETRY_TIMEOUT_S,
        max_retries: int | None = None,
        api_key: str | None = None,
        wire: Wire = "json",
        uses_proxy: bool = True,
        transport: httpx.BaseTransport | None = None,
        on_retry: Callable[[LatentwireError, float], None] = lambda _error, _pause_s: None,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s = exchange.check_timeout(timeout_s)
        self._wire = exchange.check_wire(wire)
        self._retries = RetryPolicy(
            exchange.check_max_retries(max_retries),
            exchange.check_retry_timeout(retry_timeout_s),
            rng or random.Random(),
            clock,
        )
        self._on_retry = on_retry
        self._sleep = sleep
        self._clock = clock
        is_direct = transport is not None or not uses_proxy
        http_options = exchange.http_options(base_url, api_key, is_direct=is_direct)
        if transport is None:
            transport = httpx.HTTPTransport(**exchange.transport_options(http_options))
        self._http = httpx.Client(transport=transport, **exchange.client_options(http_options))

    def plan_latent(
        self,
        task: str | None = None,
        *,
        messages: MessageList | None = None,
        k: int | None = None,
        task_id: str | None = None,
        request_id: str | None = None,
        **options: Unpack[PlanOptions],
    ) -> PlanLatent:
        """Plan one task.

        Args:
            task: the task, in words; not with messages.
            messages: a conversation, ``[{"role": ..., "content": ...}]``. A content is text, or a
                list of parts; `PlanLatent.as_part` makes the part of a latent.
            k: hidden rows to keep; None: all, 0: text only.
            task_id: returned as given.
            request_id: identifies the request in the service's log; the service makes one up if it
                is absent.
            **options: prompt and sampling options; absent ones take the service's defaults.

        Raises:
            InvalidArgumentError: when an argument exceeds its limits; nothing is sent.
            ApiError: when the service refuses the request or fails; its subclasses name the reason.
            TransportError: when no complete answer arrives.
            ProtocolError: when the answer breaks the wire contract.
        """
        call = plan_latent_call(
            task,
            k,
            task_id,
            options,
            messages=messages,
            request_id=request_id,
            wire=self._wire,
        )
        return exchange.read_plan_latent(self._exchange(call), call)

    def stream_plan_latent(
        self,
        task: str | None = None,
        *,
        messages: MessageList | None = None,
        k: int | None = None,
        task_id: str | None = None,
        request_id: str | None = None,
        **options: Unpack[PlanOptions],
    ) -> PlanStream:
        """Plan one task, and receive each token with its hidden row as it is generated.

        Iterate over the stream for its steps; afterwards, its `plan` is what `plan_latent` returns.
        Leaving its `with` block, or closing it, cancels the request. Arguments and errors are those
        of `plan_latent`; all errors but InvalidArgumentError are raised while iterating.
        """
        call = plan_latent_call(
            task,
            k,
            task_id,
            options,
            messages=messages,
            request_id=request_id,
            stream=True,
        )

        def opened() -> httpx.Response:
            return exchange.read_stream(self._exchange(call, is_stream=True))

        return PlanStream(call, opened)

    def info(self) -> InfoResponse:
        """Return what the service serves; raises like `plan_latent`."""
        return exchange.read_info(self._exchange(exchange.INFO))

    def health(self) -> bool:
        """Whether the service's process is alive. Sends one request, without retries."""
        return self._unready_reason(exchange.HEALTH, PROBE_TIMEOUT_S) is None

    def ready(self) -> bool:
        """Whether the service accepts requests now. Sends one request, without retries."""
        return self._unready_reason(exchange.READY, PROBE_TIMEOUT_S) is None

    def unready_reason(self) -> LatentwireError | None:
        """Return why the service accepts no requests now; None when it does.

        Sends one request, without retries; raises like `wait_ready` for answers that waiting cannot
        change.
        """
        return self._unready_reason(exchange.READY, PROBE_TIMEOUT_S)

    def wait_ready(self, timeout_s: float = DEFAULT_READY_TIMEOUT_S) -> None:
        """Return as soon as the service accepts requests.

        Raises:
            WaitTimeoutError: when it does not within `timeout_s` seconds.
            ApiError: for an answer that waiting cannot change, such as 401.
            ProtocolError: when the answer is not that of a latentwire service.
        """
        wait = ReadyWait(exchange.check_timeout(timeout_s), self._clock)
        while True:
            reason = self._unready_reason(exchange.READY, wait.probe_timeout_s)
            if reason is None:
                return
            self._sleep(wait.pause_s(str(reason)))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def _exchange(self, call: Call, *, is_stream: bool = False) -> Outcome:
        retries = self._retries.begin()
        while True:
            outcome = self._attempt(call, self._timeout_s, is_stream=is_stream)
            pause_s = retries.pause_s(outcome, now_s=time.time())
            if pause_s is None:
                return outcome
            self._on_retry(exchange.error_of(outcome), pause_s)
            self._sleep(pause_s)

    def _unready_reason(self, call: Call, timeout_s: float) -> LatentwireError | None:
        return exchange.unready_reason(self._attempt(call, min(timeout_s, self._timeout_s)))

    def _attempt(self, call: Call, timeout_s: float, *, is_stream: bool = False) -> Outcome:
        request = exchange.http_request(self._http, call, timeout_s)
        try:
            response = self._http.send(request, stream=is_stream)
            if not response.is_success:
                # Reading an error to its end returns the connection to the pool.
                response.read()
        except httpx.RequestError as error:
            return error
        return response
