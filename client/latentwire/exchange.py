"""Builds requests and reads answers, for the sync and the async client alike.

Everything here is a pure function of its arguments; the clients send and wait.
"""

from __future__ import annotations

import math
import os
import socket
import ssl
import time
from typing import TypedDict, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from latentwire.call import ACCEPT, Call, Wire
from latentwire.constants import (
    DEFAULT_CONNECT_TIMEOUT_S,
    EVENT_STREAM_MEDIA_TYPE,
    MAX_QUOTED_CHARS,
    REQUEST_ID_HEADER,
    SAFETENSORS_MEDIA_TYPE,
)
from latentwire.errors import (
    ApiError,
    ConnectionFailedError,
    InvalidArgumentError,
    LatentwireError,
    ProtocolError,
    TransportTimeoutError,
    api_error,
)
from latentwire.http_environment import context_for, proxy_for
from latentwire.keepalive import socket_options
from latentwire.plan_latent import PlanLatent
from latentwire.protocol import (
    ErrorBody,
    InfoResponse,
    PlanLatentResponse,
    StatusResponse,
)
from latentwire.retry import Outcome, retry_after_of
from latentwire.safetensors_wire import unpack
from latentwire.validation import describe
from latentwire.version import VERSION

ModelT = TypeVar("ModelT", bound=BaseModel)

# Answers of a service, or of a gateway in front of it, while it does not accept requests.
_UNREADY_STATUSES = frozenset({502, 503, 504})


class HttpOptions(TypedDict):
    """Arguments that `httpx.Client` and `httpx.AsyncClient` have in common."""

    base_url: httpx.URL
    headers: dict[str, str]
    limits: httpx.Limits
    proxy: httpx.Proxy | None
    verify: ssl.SSLContext
    trust_env: bool


class _ClientOptions(TypedDict):
    base_url: httpx.URL
    headers: dict[str, str]
    trust_env: bool


class _TransportOptions(TypedDict):
    limits: httpx.Limits
    proxy: httpx.Proxy | None
    verify: ssl.SSLContext
    trust_env: bool
    socket_options: list[tuple[int, int, int]]


BODY_EXTENSION = "latentwire.body"
"""Extension of an `httpx.Response` whose safetensors were received elsewhere: a memoryview."""
HEALTH = Call("GET", "/health")
READY = Call("GET", "/ready")
INFO = Call("GET", "/info")


def http_options(base_url: str, api_key: str | None, *, is_direct: bool = False) -> HttpOptions:
    """Check the arguments of a client and return those of its httpx client.

    Args:
        base_url: address of the service.
        api_key: sent with every request; None for no key.
        is_direct: whether no proxy is used, regardless of the environment.

    Raises:
        InvalidArgumentError: when the address is not http(s), the key cannot be a header, or a
            variable of the environment has an unusable proxy or certificate.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InvalidArgumentError("base_url", f"base_url: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidArgumentError("base_url", "base_url: must be like http://127.0.0.1:8000")
    headers = {"Accept": "application/json", "User-Agent": f"latentwire/{VERSION}"}
    if api_key is not None:
        # The message must not quote the key: messages end up in logs.
        if not api_key or not all("!" <= character <= "~" for character in api_key):
            raise InvalidArgumentError("api_key", "api_key: must be printable ASCII, no spaces")
        headers["Authorization"] = f"Bearer {api_key}"
    # The caller bounds its concurrency. A second, hidden queue for connections would count its
    # waits against the timeout.
    return {
        "base_url": url,
        "headers": headers,
        "limits": httpx.Limits(max_connections=None),
        "proxy": None if is_direct else proxy_for(url),
        "verify": context_for(url),
        "trust_env": False,
    }


def client_options(options: HttpOptions) -> _ClientOptions:
    """Return the options of an httpx client that gets a transport."""
    return {
        "base_url": options["base_url"],
        "headers": options["headers"],
        "trust_env": options["trust_env"],
    }


def transport_options(options: HttpOptions) -> _TransportOptions:
    """Return the options of an httpx transport; its direct connections have TCP keepalive."""
    return {
        "limits": options["limits"],
        "proxy": options["proxy"],
        "verify": options["verify"],
        "trust_env": options["trust_env"],
        "socket_options": socket_options(),
    }


def check_timeout(timeout_s: float) -> float:
    """Return a timeout in seconds, or raise InvalidArgumentError when it is not above 0."""
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise InvalidArgumentError("timeout_s", f"timeout_s: must be above 0, got {timeout_s}")
    return timeout_s


def check_wire(wire: Wire) -> Wire:
    """Return a form of answers, or raise InvalidArgumentError for an unknown name."""
    if wire not in ACCEPT:
        raise InvalidArgumentError("wire", f"wire: must be one of {', '.join(ACCEPT)}")
    return wire


def check_retry_timeout(timeout_s: float) -> float:
    """Return a time in seconds, or raise InvalidArgumentError when it is negative."""
    if not (timeout_s >= 0 and math.isfinite(timeout_s)):
        message = f"retry_timeout_s: must be at least 0, got {timeout_s}"
        raise InvalidArgumentError("retry_timeout_s", message)
    return timeout_s


def check_max_retries(max_retries: int | None) -> int | None:
    """Return a number of retries, or raise InvalidArgumentError when it is negative."""
    if max_retries is not None and max_retries < 0:
        raise InvalidArgumentError("max_retries", f"max_retries: must be >= 0, got {max_retries}")
    return max_retries


def http_request(
    http: httpx.Client | httpx.AsyncClient, call: Call, timeout_s: float
) -> httpx.Request:
    """Bind a call to the host of an httpx client.

    Args:
        http: the client that will send it.
        call: to send.
        timeout_s: maximum silence while sending and receiving, in seconds. Connecting may take no
            longer than that, and at most `DEFAULT_CONNECT_TIMEOUT_S`.
    """
    return http.build_request(
        call.method,
        call.path,
        params=call.params,
        json=call.body if call.content is None else None,
        content=call.content,
        headers=call.headers,
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, DEFAULT_CONNECT_TIMEOUT_S)),
    )


def read_plan_latent(outcome: Outcome, call: Call) -> PlanLatent:
    """Read the outcome of ``POST /plan_latent``; raises `error_of` or ProtocolError."""
    if isinstance(outcome, httpx.Response) and outcome.is_success:
        body = outcome.extensions.get(BODY_EXTENSION)
        if body is None and _is_safetensors(outcome):
            body = outcome.content
        if body is not None:
            return check_form(PlanLatent.from_parts(*unpack(body)), call)
    return check_form(PlanLatent.from_response(_parse(outcome, PlanLatentResponse)), call)


def check_form(plan: PlanLatent, call: Call) -> PlanLatent:
    """Return a plan, or raise ProtocolError when its latents are not those of the call."""
    used = None if plan.compressor is None else plan.compressor.name
    for name, sent, answered in (
        ("k", call.k, plan.k),
        ("compressor", call.compressor, used),
        ("return_hidden_state", call.has_hidden_state, plan.has_hidden_state),
    ):
        if sent != answered:
            raise ProtocolError(
                f"the request has {name} {sent}, but answer {plan.id} has {name} {answered}"
            )
    return plan


def read_stream(outcome: Outcome) -> httpx.Response:
    """Return the open answer, whose events follow; raises like `read_plan_latent`."""
    if isinstance(outcome, httpx.RequestError) or not outcome.is_success:
        error = error_of(outcome)
        raise error from (outcome if isinstance(outcome, httpx.RequestError) else None)
    media_type = outcome.headers.get("content-type", "").partition(";")[0]
    if media_type != EVENT_STREAM_MEDIA_TYPE:
        raise ProtocolError(
            f"{_where(outcome.request)} answered {media_type!r} instead of an event stream"
        )
    return outcome


def read_info(outcome: Outcome) -> InfoResponse:
    """Read the outcome of ``GET /info``; raises `error_of` or ProtocolError."""
    return _parse(outcome, InfoResponse)


def unready_reason(outcome: Outcome) -> LatentwireError | None:
    """Read the outcome of ``GET /ready`` or ``GET /health``.

    Returns:
        None when the service said yes; else the reason: its refusal, or that nothing answers.

    Raises:
        LatentwireError: for an answer that waiting cannot change, such as 401 or 404.
    """
    if isinstance(outcome, httpx.RequestError) or outcome.status_code in _UNREADY_STATUSES:
        return error_of(outcome)
    _parse(outcome, StatusResponse)
    return None


def error_of(outcome: Outcome) -> LatentwireError:
    """Turn an exchange that failed into the exception to raise.

    Returns:
        ApiError for problem details of the contract, TransportError when no complete answer
        arrived, ProtocolError for every other answer (a gateway's page, another service).
    """
    if isinstance(outcome, httpx.Response):
        return _answer_error(outcome)
    where = _where(outcome.request)
    if isinstance(outcome, httpx.ConnectTimeout):
        return TransportTimeoutError(f"{where}: could not connect in time")
    if isinstance(outcome, httpx.TimeoutException):
        return TransportTimeoutError(f"{where}: no answer in time ({type(outcome).__name__})")
    if isinstance(outcome, httpx.DecodingError):
        return ProtocolError(f"{where}: {outcome}")
    return ConnectionFailedError(f"{where}: {_connection_fault(outcome)}")


def _connection_fault(error: httpx.RequestError) -> str:
    """Name the reason why there is no connection, without the system's numbers."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "the host name is unknown"
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
        # httpx and anyio chain the system's error, or a group of one per address.
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        else:
            cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


def _answer_error(response: httpx.Response) -> ApiError | ProtocolError:
    try:
        body = ErrorBody.model_validate_json(response.content)
    except ValidationError:
        return ProtocolError(
            f"{_where(response.request)} answered {response.status_code} without problem details: "
            f"{response.text[:MAX_QUOTED_CHARS]!r}"
        )
    return api_error(
        body,
        retry_after_of(response, now_s=time.time()),
        response.headers.get(REQUEST_ID_HEADER),
    )


def _parse(outcome: Outcome, model: type[ModelT]) -> ModelT:
    if isinstance(outcome, httpx.RequestError) or not outcome.is_success:
        error = error_of(outcome)
        raise error from (outcome if isinstance(outcome, httpx.RequestError) else None)
    try:
        return model.model_validate_json(outcome.content)
    except ValidationError as error:
        raise ProtocolError(
            f"{_where(outcome.request)} did not answer with a {model.__name__}: {describe(error)}"
        ) from error


def _is_safetensors(response: httpx.Response) -> bool:
    media_type: str = response.headers.get("content-type", "")
    return media_type.partition(";")[0] == SAFETENSORS_MEDIA_TYPE


def _where(request: httpx.Request) -> str:
    """Name a request without its credentials and query, which may be secret or long."""
    return f"{request.method} {request.url.copy_with(userinfo=b'', query=None)}"
