"""The one table from domain errors to HTTP statuses, and their RFC 9457 bodies."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentwire.constants import PROBLEM_MEDIA_TYPE
from latentwire.protocol import ErrorBody, ErrorCode
from latentwire.validation import dotted, reason
from latentwire_service.engine import errors

logger = logging.getLogger(__name__)

_NOT_READY_RETRY_AFTER_S = 2
_MAX_FIELD_CHARS = 100


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    code: ErrorCode
    title: str


_INVALID = _Answer(422, "invalid-request", "The request is not acceptable")
_INTERNAL = _Answer(500, "internal", "The service failed")

_ANSWERS: Mapping[type[errors.EngineError], _Answer] = {
    errors.InvalidParamsError: _INVALID,
    errors.PromptTooLongError: _Answer(422, "prompt-too-long", "The prompt does not fit"),
    errors.QueueFullError: _Answer(429, "queue-full", "Too many requests are waiting"),
    errors.EngineUnavailableError: _Answer(503, "not-ready", "The service takes no requests"),
    errors.DeadlineExceededError: _Answer(504, "deadline-exceeded", "The request took too long"),
    errors.LatentInvalidError: _Answer(500, "latent-invalid", "The latent is not valid"),
}

_HTTP_ANSWERS: Mapping[int, _Answer] = {
    # The framework's word for a body that is not JSON text at all (undecodable bytes).
    400: _INVALID,
    401: _Answer(401, "unauthorized", "A key is needed"),
    404: _Answer(404, "not-found", "There is nothing at this path"),
    405: _Answer(405, "method-not-allowed", "This path does not take this method"),
    408: _Answer(408, "body-timeout", "The request body did not arrive"),
    413: _Answer(413, "payload-too-large", "The request body is too large"),
    421: _Answer(421, "misdirected", "The request is meant for another service"),
}


_EXAMPLES: Mapping[ErrorCode, dict[str, object]] = {
    "invalid-request": {
        "detail": "top_p: Input should be less than or equal to 1",
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
        "detail": "look up 9f86d081884c7d65 in the log",
        "error_id": "9f86d081884c7d65",
    },
    "unauthorized": {"detail": "a key is needed: Authorization: Bearer KEY"},
    "body-timeout": {"detail": "the request body did not arrive within 60 s"},
    "misdirected": {"detail": "the Host header names another service"},
    "not-found": {"detail": "Not Found"},
    "method-not-allowed": {"detail": "Method Not Allowed"},
}


def documented_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe error answers for OpenAPI, each code with an example."""
    schema = {"$ref": "#/components/schemas/ErrorBody"}
    answers = {a.code: a for a in [*_ANSWERS.values(), *_HTTP_ANSWERS.values(), _INTERNAL]}
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


def _standard_members(answer: _Answer) -> dict[str, object]:
    return {"title": answer.title, "status": answer.status, "code": answer.code}


def install(app: FastAPI) -> None:
    """Make the app answer every error as problem details."""
    app.add_exception_handler(errors.EngineError, _on_engine_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(_Unexpected)


class _Unexpected:
    """ASGI middleware that answers what nothing else has answered.

    Starlette's own handler of `Exception` raises it again, for the server to log it once more and
    to break the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; on an exception, answer unless an answer has begun."""
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
    """Return the problem details of an error that the engine, or nobody, foresaw, and its headers.

    What nobody foresaw is logged under an id, and the answer has only the id.
    """
    answer = _ANSWERS.get(type(error)) if isinstance(error, errors.EngineError) else None
    if answer is None:
        error_id = secrets.token_hex(8)
        logger.error("error %s", error_id, exc_info=error)
        return _body(_INTERNAL, f"look up {error_id} in the log", error_id=error_id), {}
    headers = {}
    members: dict[str, Any] = {}
    match error:
        case errors.QueueFullError():
            headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
        case errors.EngineUnavailableError():
            headers["Retry-After"] = str(_NOT_READY_RETRY_AFTER_S)
        case errors.InvalidParamsError():
            members["field"] = error.field
        case errors.PromptTooLongError():
            members["prompt_tokens"] = error.prompt_tokens
            members["max_model_len"] = error.max_model_len
    return _body(answer, str(error), **members), headers


def problem_response(
    status: int, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer a request that no route has seen, with one of the statuses of this table."""
    return _problem(_HTTP_ANSWERS[status], detail, headers or {})


async def _on_engine_error(_request: Request, error: Exception) -> Response:
    return _response(*error_body(error))


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # The name of an unknown field is the sender's: it may be of any length, and no Unicode text.
    field = _field_name(first["loc"])[:_MAX_FIELD_CHARS].encode("utf-8", "replace").decode()
    detail = f"{field}: {reason(first['type'], first['msg'])}"
    return _problem(_INVALID, detail, {}, field=field)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # Starlette names the methods of one route, where a path has one for each method.
        methods = request.app.openapi()["paths"].get(request.url.path)
        if methods:
            error.headers = {"Allow": ", ".join(sorted(methods)).upper()}
    answer = _HTTP_ANSWERS.get(error.status_code)
    if answer is None:
        return _response(*error_body(error))
    if answer is _INVALID:
        return _problem(answer, "body: not a JSON text", {}, field="body")
    return _problem(answer, error.detail, dict(error.headers or {}))


def _field_name(location: Sequence[str | int]) -> str:
    """Name the field: ("body", "stop", 0) is `stop.0`; ("body", 17), a JSON position, is `body`."""
    if len(location) < 2 or isinstance(location[1], int):
        return str(location[0])
    return dotted(location[1:])


def _problem(answer: _Answer, detail: str, headers: Mapping[str, str], **members: Any) -> Response:
    return _response(_body(answer, detail, **members), headers)


def _body(answer: _Answer, detail: str, **members: Any) -> ErrorBody:
    return ErrorBody(
        title=answer.title, status=answer.status, code=answer.code, detail=detail, **members
    )


def _response(body: ErrorBody, headers: Mapping[str, str]) -> Response:
    return Response(
        body.model_dump_json(exclude_none=True),
        status_code=body.status,
        headers=headers,
        media_type=PROBLEM_MEDIA_TYPE,
    )
