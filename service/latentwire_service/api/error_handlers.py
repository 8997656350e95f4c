"""The one table that maps errors to HTTP statuses and RFC 9457 bodies."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentwire.constants import JSON_MEDIA_TYPE, PROBLEM_MEDIA_TYPE
from latentwire.protocol import ErrorBody, ErrorCode
from latentwire.validation import dotted, reason
from latentwire_service.api.head_requests import HEAD_PATHS
from latentwire_service.api.openai.error_form import UnknownModelError, is_openai_path, openai_error
from latentwire_service.engine import errors

logger = logging.getLogger(__name__)

_NOT_READY_RETRY_AFTER_S = 2
_MAX_FIELD_CHARS = 100
# Stands for an empty name of a field, so that a message names something.
NO_NAME = '""'


@dataclass(frozen=True, slots=True)
class _Problem:
    status: int
    code: ErrorCode
    title: str


_INVALID = _Problem(422, "invalid-request", "The request is invalid")
_NO_MODEL = _Problem(404, "not-found", "No such model")
_INTERNAL = _Problem(500, "internal", "The service failed")

_ENGINE_PROBLEMS: Mapping[type[errors.EngineError], _Problem] = {
    errors.InvalidParamsError: _INVALID,
    errors.NoTokenError: _INVALID,
    errors.PromptTooLongError: _Problem(422, "prompt-too-long", "The prompt does not fit"),
    errors.QueueFullError: _Problem(429, "queue-full", "Too many requests are waiting"),
    errors.EngineUnavailableError: _Problem(503, "not-ready", "The service accepts no requests"),
    errors.EngineFailedError: _Problem(503, "not-ready", "The service accepts no requests"),
    errors.DeadlineExceededError: _Problem(504, "deadline-exceeded", "The request took too long"),
    errors.LatentInvalidError: _Problem(500, "latent-invalid", "The latent is invalid"),
    errors.StepBridgeError: _Problem(500, "latent-invalid", "The latent is invalid"),
}

_HTTP_PROBLEMS: Mapping[int, _Problem] = {
    # The framework's status for a body that cannot be decoded as text.
    400: _INVALID,
    401: _Problem(401, "unauthorized", "An API key is required"),
    404: _Problem(404, "not-found", "No such path"),
    405: _Problem(405, "method-not-allowed", "Method not allowed for this path"),
    406: _Problem(406, "not-acceptable", "Accept excludes every form of the answer"),
    408: _Problem(408, "body-timeout", "The request body did not arrive in time"),
    413: _Problem(413, "payload-too-large", "The request body is too large"),
    415: _Problem(415, "unsupported-media-type", "The service cannot read this form of a body"),
    # A body that is not in its content coding.
    422: _INVALID,
    421: _Problem(421, "misdirected", "The Host header names another service"),
}


_EXAMPLES: Mapping[ErrorCode, dict[str, object]] = {
    "invalid-request": {
        "detail": "top_p: must be at most 1",
        "field": "top_p",
    },
    "prompt-too-long": {
        "detail": "the prompt has 4000 tokens and max_new_tokens is 512; together they must not "
        "exceed 4096",
        "prompt_tokens": 4000,
        "max_model_len": 4096,
    },
    "queue-full": {"detail": "1024 requests are already waiting"},
    "not-ready": {"detail": "the service is loading"},
    "deadline-exceeded": {"detail": "the request did not finish within 30 s"},
    "latent-invalid": {"detail": "the model's hidden state is not finite"},
    "payload-too-large": {"detail": "the request body exceeds 1048576 bytes"},
    "internal": {
        "detail": "error 9f86d081884c7d65; see the log of the service",
        "error_id": "9f86d081884c7d65",
    },
    "unauthorized": {"detail": "an API key is required: Authorization: Bearer KEY"},
    "body-timeout": {"detail": "the request body did not arrive within 60 s"},
    "misdirected": {
        "detail": "the Host header is 'example.org', which --allowed-host does not list"
    },
    "not-acceptable": {
        "detail": "Accept allows none of application/json, application/vnd.apache.arrow.stream, "
        "application/x-safetensors; text/event-stream is the answer to a request with stream: true"
    },
    "unsupported-media-type": {
        "detail": "the request has no Content-Type; send Content-Type: application/json"
    },
    "not-found": {"detail": "Not Found"},
    "method-not-allowed": {"detail": "Method Not Allowed"},
}


def documented_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe error responses for the OpenAPI document, with an example of each code."""
    schema = {"$ref": "#/components/schemas/ErrorBody"}
    answers = {a.code: a for a in [*_ENGINE_PROBLEMS.values(), *_HTTP_PROBLEMS.values(), _INTERNAL]}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "model": ErrorBody,
            "content": {
                PROBLEM_MEDIA_TYPE: {
                    "schema": schema,
                    "examples": {
                        code: {"value": _EXAMPLES[code] | _standard_members(answer)}
                        for code, answer in answers.items()
                        if answer.status == status
                    },
                }
            },
        }
        for status in statuses
    }


def _standard_members(answer: _Problem) -> dict[str, object]:
    return {"title": answer.title, "status": answer.status, "code": answer.code}


def install(app: FastAPI) -> None:
    """Make the app answer every error with problem details."""
    app.add_exception_handler(errors.EngineError, _on_engine_error)
    app.add_exception_handler(UnknownModelError, _on_unknown_model)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(_Unexpected)


class _Unexpected:
    """ASGI middleware that answers exceptions without a handler.

    Starlette's own handler of `Exception` raises it again. The server would log it a second time
    and close the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; answer an exception unless a response has begun."""
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if scope["type"] != "http" or has_begun:
                raise
            await _response(*error_body(error))(scope, receive, send)


def error_body(error: Exception) -> tuple[ErrorBody, dict[str, str]]:
    """Map an exception to problem details and headers.

    An unknown exception becomes a 500 that shows only a log id.
    """
    answer = _ENGINE_PROBLEMS.get(type(error)) if isinstance(error, errors.EngineError) else None
    if answer is None:
        error_id = secrets.token_hex(8)
        logger.error("error %s", error_id, exc_info=error)
        return _body(
            _INTERNAL, f"error {error_id}; see the log of the service", error_id=error_id
        ), {}
    headers = {}
    members: dict[str, Any] = {}
    match error:
        case errors.QueueFullError():
            headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
        case errors.EngineUnavailableError():
            headers["Retry-After"] = str(_NOT_READY_RETRY_AFTER_S)
            if isinstance(error, errors.EngineFailedError):
                members["engine_failed"] = True
        case errors.InvalidParamsError():
            members["field"] = error.field
        case errors.PromptTooLongError():
            members["prompt_tokens"] = error.prompt_tokens
            members["max_model_len"] = error.max_model_len
    return _body(answer, str(error), **members), headers


def problem_response(
    status: int, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Refuse a request before it reaches a route, with a status of the table."""
    return _problem(_HTTP_PROBLEMS[status], detail, headers or {})


async def _on_engine_error(_request: Request, error: Exception) -> Response:
    return _response(*error_body(error))


async def _on_unknown_model(_request: Request, error: Exception) -> Response:
    return _problem(_NO_MODEL, str(error), {}, field="model")


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # The client chose the name of an unknown field: it may be long, and invalid Unicode.
    field = _field_name(first["loc"])[:_MAX_FIELD_CHARS].encode("utf-8", "replace").decode()
    field = field or NO_NAME
    detail = f"{field}: {reason(first)}"
    return _problem(_INVALID, detail, {}, field=field)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": ", ".join(_allowed_methods(request))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    if request.method == "OPTIONS" and request.scope["path"] == "*":
        # About the service as a whole: RFC 9110, section 9.3.7.
        return Response(status_code=204, headers={"Allow": "GET, HEAD, OPTIONS, POST"})
    if error.status_code == HTTPStatus.NOT_FOUND and _allowed_methods(request, without_slash=True):
        error.detail = "no such path; the path has no slash at its end"
    answer = _HTTP_PROBLEMS.get(error.status_code)
    if answer is None:
        return _response(*error_body(error))
    if answer is _INVALID:
        detail = error.detail if error.status_code == answer.status else "body: not valid JSON"
        return _problem(answer, detail, {}, field="body")
    return _problem(answer, error.detail, headers)


def _allowed_methods(request: Request, *, without_slash: bool = False) -> list[str]:
    """List the methods of the request's path; none if the path does not exist.

    Starlette lists the methods of one route, but a path has a route for each method.
    """
    path = request.url.path
    if without_slash:
        path = path.rstrip("/")
    paths = request.app.openapi()["paths"]
    methods = {method.upper() for method in paths.get(_template_of(path, paths), ())}
    if path in HEAD_PATHS:
        methods |= {"GET", "HEAD"}
    return sorted(methods | {"OPTIONS"}) if methods else []


def _template_of(path: str, templates: Iterable[str]) -> str:
    """Return the path of the document that a request's path belongs to; itself if there is none."""
    for template in templates:
        before, has_parameter, _ = template.partition("{")
        if has_parameter and path.startswith(before) and len(path) > len(before):
            return template
    return path


def _field_name(location: Sequence[str | int]) -> str:
    """Name a field: ("body", "stop", 0) is `stop.0`; ("body", 17), a JSON position, is `body`."""
    if len(location) < 2 or isinstance(location[1], int):
        return str(location[0])
    return dotted(location[1:])


def _problem(answer: _Problem, detail: str, headers: Mapping[str, str], **members: Any) -> Response:
    return _response(_body(answer, detail, **members), headers)


def _body(answer: _Problem, detail: str, **members: Any) -> ErrorBody:
    return ErrorBody(
        title=answer.title, status=answer.status, code=answer.code, detail=detail, **members
    )


def _response(body: ErrorBody, headers: Mapping[str, str]) -> Response:
    return _ErrorResponse(body, headers)


class _ErrorResponse(Response):
    """An error in the form of the path that it answers."""

    def __init__(self, body: ErrorBody, headers: Mapping[str, str]) -> None:
        super().__init__(
            body.model_dump_json(exclude_none=True),
            status_code=body.status,
            headers=headers,
            media_type=PROBLEM_MEDIA_TYPE,
        )
        self._body, self._given_headers = body, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the error."""
        if not is_openai_path(scope["path"]):
            await super().__call__(scope, receive, send)
            return
        status, content = openai_error(self._body)
        response = Response(content, status, dict(self._given_headers), media_type=JSON_MEDIA_TYPE)
        await response(scope, receive, send)


def sent_status(scope: Scope, body: ErrorBody) -> int:
    """Return the status with which the request's path answers an error."""
    return openai_error(body)[0] if is_openai_path(scope["path"]) else body.status
