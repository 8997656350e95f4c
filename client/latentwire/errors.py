"""Errors of a client call.

LatentwireError
├── InvalidArgumentError      an argument exceeds its limits; nothing was sent (field)
├── NumberFormatError         a value does not fit the number format of its row (row)
├── DatasetError              a stored dataset cannot be read
├── MissingDependencyError    an optional package is required and not installed
├── TransportError            no complete answer arrived
│   ├── ConnectionFailedError     nothing listens, or the connection broke
│   └── TransportTimeoutError     one HTTP exchange exceeded its timeout
├── ProtocolError             an answer breaks the wire contract
├── WaitTimeoutError          `wait_ready` exceeded its timeout
├── CompressorError           a compressor does not exist or cannot be used (field)
└── ApiError                  the service answered with an error (status, code, detail)
    ├── InvalidRequestError       422 invalid-request (field)
    ├── PromptTooLongError        422 prompt-too-long (prompt_tokens, max_model_len)
    ├── UnauthorizedError         401 unauthorized
    ├── PayloadTooLargeError      413 payload-too-large
    ├── QueueFullError            429 queue-full (retry_after_s)
    ├── NotReadyError             503 not-ready (retry_after_s)
    ├── DeadlineExceededError     504 deadline-exceeded
    ├── InternalServiceError      500 internal (error_id)
    └── LatentInvalidError        500 latent-invalid
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # What the protocol is built on raises these errors, too.
    from latentwire.protocol import ErrorBody, ErrorCode


class LatentwireError(Exception):
    """Base of every error this package raises."""


class InvalidArgumentError(LatentwireError, ValueError):
    """An argument exceeds its limits; nothing was sent.

    Attributes:
        field: name of the first wrong argument.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NumberFormatError(LatentwireError, ValueError):
    """A row cannot be stored in a number format.

    Attributes:
        row: index of the row in its matrix.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row} {reason}")
        self.row = row


class DatasetError(LatentwireError, ValueError):
    """A stored dataset cannot be read; the text says why."""


class MissingDependencyError(LatentwireError, ImportError):
    """An optional package is required and not installed."""


class TransportError(LatentwireError):
    """No complete HTTP answer arrived."""


class ConnectionFailedError(TransportError):
    """Nothing listens at the address, or the connection broke before the answer was complete."""


class TransportTimeoutError(TransportError):
    """One HTTP exchange exceeded its timeout."""


class ProtocolError(LatentwireError):
    """An answer breaks the wire contract: another service, a gateway or another version."""


class WaitTimeoutError(LatentwireError):
    """The service did not become ready within the timeout of `wait_ready`."""


class CompressorError(LatentwireError, ValueError):
    """A compressor does not exist, or cannot be made, applied or reversed.

    Attributes:
        field: the wrong argument or field, such as `k`; None if none is to blame.
        reason: the text without the field.
    """

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class ApiError(LatentwireError):
    """The service answered with an error.

    Attributes:
        body: the problem details as sent.
        retry_after_s: seconds to wait before a retry, from `Retry-After`; None without one.
        request_id: the request's id in the service's log, from `X-Request-Id`; None without one.
    """

    def __init__(
        self,
        body: ErrorBody,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{body.code} ({body.status}): {body.detail}")
        self.body = body
        self.retry_after_s = retry_after_s
        self.request_id = request_id

    @property
    def code(self) -> ErrorCode:
        """The stable error code."""
        return self.body.code

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.body.status


class InvalidRequestError(ApiError):
    """A field of the request is invalid; `body.field` names it."""


class PromptTooLongError(ApiError):
    """The prompt does not fit; `body.prompt_tokens` and `body.max_model_len` hold both numbers."""


class UnauthorizedError(ApiError):
    """The API key is missing or wrong."""


class PayloadTooLargeError(ApiError):
    """The request body is larger than the service accepts."""


class QueueFullError(ApiError):
    """The service's queue is full; retry after `retry_after_s`."""


class NotReadyError(ApiError):
    """The service is loading, draining or failed."""


class DeadlineExceededError(ApiError):
    """The request's deadline passed before its plan was finished."""


class InternalServiceError(ApiError):
    """The service failed; `body.error_id` identifies the error in its log."""


class LatentInvalidError(ApiError):
    """The model produced hidden states that break the latent's invariant (NaN, wrong shape)."""


_ERROR_OF_CODE: dict[ErrorCode, type[ApiError]] = {
    "invalid-request": InvalidRequestError,
    "prompt-too-long": PromptTooLongError,
    "unauthorized": UnauthorizedError,
    "payload-too-large": PayloadTooLargeError,
    "queue-full": QueueFullError,
    "not-ready": NotReadyError,
    "deadline-exceeded": DeadlineExceededError,
    "internal": InternalServiceError,
    "latent-invalid": LatentInvalidError,
}


def api_error(
    body: ErrorBody, retry_after_s: float | None = None, request_id: str | None = None
) -> ApiError:
    """Build the exception for an error answer of the service."""
    return _ERROR_OF_CODE.get(body.code, ApiError)(body, retry_after_s, request_id)
