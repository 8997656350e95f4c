"""The form of a plan request: query in UTF-8, body in JSON or safetensors, content coding.

The checks belong to the routes, not to a middleware: an unknown path, a wrong method or a missing
key is refused first.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine
from email.message import Message as MimeMessage
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from latentwire.constants import JSON_MEDIA_TYPE, SAFETENSORS_MEDIA_TYPE
from latentwire.safetensors_wire import unpack_request
from latentwire.strict_json import RepeatedKeyError, load_json
from latentwire_service.api.error_handlers import NO_NAME
from latentwire_service.api.request_scope import set_tensors
from latentwire_service.engine.errors import InvalidParamsError

# `wbits` of zlib for each content coding that can be read.
_CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_ACCEPTED_CODINGS = "gzip, deflate"
# RFC 8259: JSON between systems is UTF-8, of which US-ASCII is a part.
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_JSON_TYPE = re.compile(r"application/(json|[\w.!#$&^-]+\+json)")
_MAX_SHOWN_CHARS = 60
_NOT_UTF_8 = "must be UTF-8"
_NOT_JSON_IN_UTF_8 = "must be JSON in UTF-8"
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PlanRoute(APIRoute):
    """A route that refuses malformed requests before it reads their fields.

    Attributes:
        max_body_bytes: returns the most bytes of a body after decoding.
        repeatable: names of the query parameters that may be repeated.
    """

    max_body_bytes: Callable[[], int]
    repeatable: frozenset[str]

    def get_route_handler(self) -> Handler:
        """Return the handler that FastAPI makes, behind the checks."""
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            check_query(request.scope["query_string"], self.repeatable)
            receive = request.receive
            form: type[JsonRequest | TensorRequest] = JsonRequest
            if request.method == "POST" and _has_body(request.headers):
                form = form_of(request.headers.getlist("content-type"))
                coding = content_coding(request.headers)
                receive = decoded(receive, coding, self.max_body_bytes())
            try:
                return await handler(form(request.scope, receive))
            except HTTPException as error:
                # The framework turns whatever `json` raises into a 400.
                if isinstance(error.__cause__, InvalidParamsError):
                    raise error.__cause__ from None
                raise

        return checked


class JsonRequest(Request):
    """A request whose body is read strictly."""

    async def json(self) -> Any:
        """Return the fields."""
        return read_json(await self.body())


class TensorRequest(Request):
    """A request in a safetensors file. To the framework it looks like JSON."""

    @property
    def headers(self) -> Headers:
        """The headers, with the media type of the fields."""
        headers = MutableHeaders(raw=list(self.scope["headers"]))
        headers["content-type"] = JSON_MEDIA_TYPE
        return headers

    async def json(self) -> Any:
        """Return the fields; the tensors are kept for the route."""
        try:
            fields, tensors = unpack_request(await self.body())
        except RepeatedKeyError as error:
            raise InvalidParamsError(_shown(error.key) or NO_NAME, str(error)) from error
        except ValueError as error:
            raise InvalidParamsError("body", str(error)) from error
        set_tensors(self.scope, tensors)
        return fields


def plan_route(max_body_bytes: Callable[[], int], repeatable: frozenset[str]) -> type[PlanRoute]:
    """Return the class of a service's plan routes.

    Args:
        max_body_bytes: returns the most bytes of a body after decoding.
        repeatable: names of the query parameters that may be repeated.
    """
    # A function as an attribute of a class would become a method.
    attributes = {"max_body_bytes": staticmethod(max_body_bytes), "repeatable": repeatable}
    return type("PlanRoute", (PlanRoute,), attributes)


def check_query(query: bytes, repeatable: frozenset[str]) -> None:
    """Refuse a query that cannot be read in one way only.

    The framework would replace invalid bytes, keep the last of several values, and read a broken
    percent-encoding as text.

    Raises:
        InvalidParamsError: a name or a value is not UTF-8 or not percent-encoded, or a parameter is
            repeated.
    """
    names: Counter[str] = Counter()
    for part in filter(None, query.split(b"&")):
        raw_name, _, raw_value = part.partition(b"=")
        name = _text(raw_name, "query")
        _text(raw_value, name)
        names[name] += 1
    for name, count in names.items():
        if count > 1 and name not in repeatable:
            raise InvalidParamsError(_shown(name), f"must not be repeated; it occurs {count} times")


def read_json(body: bytes) -> Any:
    """Read a JSON body. A byte order mark is allowed, as RFC 8259 permits.

    Raises:
        InvalidParamsError: the body is not UTF-8, or an object has a key more than once.
        ValueError: it is not JSON.
    """
    # `json` alone would guess UTF-16 and UTF-32 from zero bytes, which JSON texts never hold.
    if b"\0" in body:
        raise InvalidParamsError("body", _NOT_JSON_IN_UTF_8)
    try:
        return load_json(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidParamsError("body", _NOT_JSON_IN_UTF_8) from error
    except RepeatedKeyError as error:
        raise InvalidParamsError(_shown(error.key) or NO_NAME, str(error)) from error


def form_of(content_types: list[str]) -> type[JsonRequest | TensorRequest]:
    """Choose how to read a body that is declared as JSON in UTF-8, or as safetensors.

    Args:
        content_types: the values of all `Content-Type` headers.

    Raises:
        HTTPException: 415, naming the header.
    """
    header = {"Accept": JSON_MEDIA_TYPE}
    if len(content_types) != 1:
        found = "has no Content-Type" if not content_types else "has several Content-Type headers"
        raise HTTPException(
            415, f"the request {found}; send Content-Type: {JSON_MEDIA_TYPE}", header
        )
    parsed = MimeMessage()
    parsed["content-type"] = content_types[0]
    if parsed.get_content_type() == SAFETENSORS_MEDIA_TYPE:
        return TensorRequest
    if not _JSON_TYPE.fullmatch(parsed.get_content_type()):
        detail = (
            f"Content-Type is {_shown(content_types[0])!r}; the body must be {JSON_MEDIA_TYPE} or "
            f"{SAFETENSORS_MEDIA_TYPE}"
        )
        raise HTTPException(415, detail, header)
    charset = parsed.get_content_charset("utf-8")
    if charset not in _CHARSETS:
        detail = f"Content-Type has the charset {_shown(charset)!r}; the body must be UTF-8"
        raise HTTPException(415, detail, header)
    return JsonRequest


def content_coding(headers: Headers) -> str | None:
    """Return the coding of the body; None if it is not coded.

    Raises:
        HTTPException: 415 with `Accept-Encoding`, for an unknown coding or several.
    """
    given = ",".join(headers.getlist("content-encoding")).lower().split(",")
    codings = [name.strip() for name in given if name.strip() not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _CODINGS:
        shown = _shown(", ".join(codings))
        raise HTTPException(
            415,
            f"Content-Encoding is {shown!r}; the service reads {_ACCEPTED_CODINGS}, one at a time",
            {"Accept-Encoding": _ACCEPTED_CODINGS},
        )
    return codings[0]


def decoded(receive: Receive, coding: str | None, max_body_bytes: int) -> Receive:
    """Return a `receive` that decodes the body as it arrives.

    Args:
        receive: of the request.
        coding: as `content_coding` returns it.
        max_body_bytes: most bytes of the decoded body. A few bytes can decode to gigabytes, so no
            more than this is ever held.
    """
    if coding is None:
        return receive
    decoder = _Decoder(coding, max_body_bytes)

    async def decoding() -> Message:
        message = await receive()
        if message["type"] == "http.request" and not decoder.is_complete:
            body = decoder.feed(message.get("body", b""))
            if not message.get("more_body", False):
                decoder.finish()
            return {**message, "body": body}
        return message

    return decoding


class _Decoder:
    def __init__(self, coding: str, max_bytes: int) -> None:
        self._coding = coding
        self._zlib = zlib.decompressobj(_CODINGS[coding])
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self.is_complete = False

    def feed(self, data: bytes) -> bytes:
        """Decode a part of the body.

        Raises:
            HTTPException: 413, the decoded body is too large; 422, it is not in its coding.
        """
        try:
            body = self._zlib.decompress(data, self._max_bytes - self._num_bytes + 1)
        except zlib.error as error:
            raise self._invalid() from error
        self._num_bytes += len(body)
        if self._num_bytes > self._max_bytes:
            raise HTTPException(413, f"the decoded request body exceeds {self._max_bytes} bytes")
        if self._zlib.unused_data:
            raise self._invalid()
        return body

    def finish(self) -> None:
        """Note the end of the body.

        Raises:
            HTTPException: 422, the coded data continue beyond it.
        """
        if not self._zlib.eof:
            raise self._invalid()
        self.is_complete = True

    def _invalid(self) -> HTTPException:
        return HTTPException(422, f"body: not valid {self._coding} data")


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _text(raw: bytes, field: str) -> str:
    """Decode one name or value of a query."""
    if _BROKEN_ESCAPE.search(raw):
        raise InvalidParamsError(
            _shown(field), "a % must begin a percent-encoded byte; write %25 for the sign itself"
        )
    try:
        return unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError as error:
        raise InvalidParamsError(_shown(field), _NOT_UTF_8) from error


def _shown(text: str) -> str:
    """Bound a text that the client chose, and make it valid Unicode."""
    return text[:_MAX_SHOWN_CHARS].encode("utf-8", "replace").decode()
