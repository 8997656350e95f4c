"""Errors as OpenAI's API answers them. Knows the codes of our errors, not where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel, Field

from latentwire.protocol import ErrorBody, ErrorCode

_PREFIX = "/v1/"
# The names that OpenAI's clients know; the others are our own codes.
_CODES: Mapping[ErrorCode, str] = {
    "prompt-too-long": "context_length_exceeded",
    "unauthorized": "invalid_api_key",
    "queue-full": "rate_limit_exceeded",
}


class UnknownModelError(Exception):
    """The request names a model that this service does not serve."""

    def __init__(self, name: str, served: str) -> None:
        super().__init__(f"model: {name[:100]!r} is not served here; this service serves {served}")


class OpenAIErrorFields(BaseModel):
    """What is wrong."""

    message: str
    type: str = Field(
        description="invalid_request_error, rate_limit_error or server_error: whether to change "
        "the request, to wait, or to report it."
    )
    param: str | None = Field(description="The field at fault.")
    code: str | None = Field(description="A stable name of the error.")


class OpenAIError(BaseModel):
    """An error in OpenAI's form."""

    error: OpenAIErrorFields


def is_openai_path(path: str) -> bool:
    """Whether errors of a path have OpenAI's form."""
    return path.startswith(_PREFIX)


def openai_error(body: ErrorBody) -> tuple[int, bytes]:
    """Return status and JSON of an error. What OpenAI answers with 400 is 400 here, not 422."""
    status = 400 if body.status == 422 else body.status
    param = "messages" if body.code == "prompt-too-long" else body.field
    code = _CODES.get(body.code, body.code.replace("-", "_"))
    if body.code == "not-found" and body.field == "model":
        code = "model_not_found"
    fields = OpenAIErrorFields(message=body.detail, type=_type(status), param=param, code=code)
    content = json.dumps({"error": fields.model_dump()}, ensure_ascii=False, separators=(",", ":"))
    return status, content.encode()


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"
