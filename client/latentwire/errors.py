"""What can go wrong in a client call.

LatentwireError
├── InvalidArgumentError      an argument is out of its limits; nothing was sent (field)
├── MissingDependencyError    an optional package is needed and not installed
├── TransportError            no usable answer came back
│   ├── ConnectionFailedError     nothing listens, or the connection broke
│   └── TransportTimeoutError     the time allowed for one HTTP exchange ran out
├── ProtocolError             an answer came that breaks the wire contract
├── WaitTimeoutError          `wait_ready` ran out of time
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

from latentwire.protocol import ErrorBody, ErrorCode


class LatentwireError(Exception):
    """Base of every error this package raises."""


class InvalidArgumentError(LatentwireError, ValueError):
    """An argument is out of its limits; nothing was sent.

    Attributes:
        field: name of the first argument at fault.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class MissingDependencyError(LatentwireError, ImportError):
    """An optional package is needed for this and is not installed."""


class TransportError(LatentwireError):
    """No usable HTTP answer came back."""


class ConnectionFailedError(TransportError):
    """Nothing listens at the address, or the connection broke before the answer was whole."""


class TransportTimeoutError(TransportError):
    """The time allowed for one HTTP exchange ran out."""


class ProtocolError(LatentwireError):
    """An answer came that breaks the wire contract: another service, a gateway, another version."""


class WaitTimeoutError(LatentwireError):
    """The service did not become ready within the time given to `wait_ready`."""


class ApiError(LatentwireError):
    """The service answered with an error.

    Attributes:
        body: the problem details as sent.
        retry_after_s: seconds the service asks to wait, from `Retry-After`; None when it did not.
        request_id: the request's id in the service's log, from `X-Request-Id`; None where an error
            came without one.
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
    """A field of the request is not acceptable; `body.field` names it."""


class PromptTooLongError(ApiError):
    """The prompt does not fit; `body.prompt_tokens` and `body.max_model_len` hold both numbers."""


class UnauthorizedError(ApiError):
    """The service wants a key, or another one."""


class PayloadTooLargeError(ApiError):
    """The request body is larger than the service takes."""


class QueueFullError(ApiError):
    """The service is overloaded; try again after `retry_after_s`."""


class NotReadyError(ApiError):
    """The service is loading, draining or failed."""


class DeadlineExceededError(ApiError):
    """The request's deadline passed before its plan was finished."""


class InternalServiceError(ApiError):
    """The service failed; `body.error_id` is what its operator looks up."""


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
    """Build the exception that stands for an error answer of the service."""
    return _ERROR_OF_CODE.get(body.code, ApiError)(body, retry_after_s, request_id)
