"""Errors of places outside this machine, in words that hold no address, path or key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from latentwire_batch.errors import BatchError, LocationError, StorageError, UsageError

__all__ = ["LocationError", "location_errors", "place_error"]

# Names of classes, because the libraries that define them may not be installed. The first match of
# an error's classes, from the most special one on, decides.
_DENIED = "access is denied"
_NO_CREDENTIALS = (
    "no credentials are found; set those of the store (for S3: AWS_PROFILE, or AWS_ACCESS_KEY_ID "
    "and AWS_SECRET_ACCESS_KEY)"
)
_UNREACHABLE = "the store cannot be reached"
_TIMED_OUT = "the store does not answer in time"
_MISSING = "no such file or folder"
CUT_OFF = "the connection broke before all bytes had arrived"
_INVALID = "the URL, or a setting of its library, is not valid"
_NO_TLS = "no TLS connection can be made to the server"
_REASONS = {
    "NoCredentialsError": _NO_CREDENTIALS,
    "PartialCredentialsError": _NO_CREDENTIALS,
    "DefaultCredentialsError": "no credentials are found; set those of the store (for Google "
    "Cloud: GOOGLE_APPLICATION_CREDENTIALS)",
    "ProfileNotFound": "the profile of AWS_PROFILE does not exist",
    "ParamValidationError": _INVALID,
    "GatedRepoError": f"{_DENIED}: the repository is gated",
    "RepositoryNotFoundError": "no such repository, or it needs a token in HF_TOKEN",
    "RevisionNotFoundError": "no such branch, tag or commit",
    "PermissionError": _DENIED,
    "IsADirectoryError": "is a folder",
    "NotADirectoryError": "is not a folder",
    "FSTimeoutError": _TIMED_OUT,
    "ConnectTimeoutError": _UNREACHABLE,
    "ReadTimeoutError": _TIMED_OUT,
    "TimeoutError": _TIMED_OUT,
    "ClientConnectorCertificateError": "the certificate of the server is not accepted",
    "ClientSSLError": _NO_TLS,
    "SSLError": _NO_TLS,
    # Bodies that end too early, as the HTTP libraries of the stores name them.
    "ClientPayloadError": CUT_OFF,
    "ClientConnectionError": CUT_OFF,
    "ConnectionClosedError": CUT_OFF,
    "ResponseStreamingError": CUT_OFF,
    "IncompleteReadError": CUT_OFF,
    "IncompleteRead": CUT_OFF,
    "ChunkedEncodingError": CUT_OFF,
    "ProtocolError": CUT_OFF,
    "NetworkError": CUT_OFF,
    "ConnectionError": _UNREACHABLE,
    "ConnectError": _UNREACHABLE,
    "ClientConnectorError": _UNREACHABLE,
    "ServerTimeoutError": _TIMED_OUT,
    "TimeoutException": _TIMED_OUT,
    "ConnectTimeout": _UNREACHABLE,
    "TooManyRedirects": "the server redirects too often",
    "HTTPClientError": _UNREACHABLE,
    "HfUriError": _INVALID,
    "HFValidationError": _INVALID,
    "EntryNotFoundError": _MISSING,
    "FileNotFoundError": _MISSING,
    "NotImplementedError": "this kind of place cannot do that",
    "JSONDecodeError": "the answer of the store is not one that its library understands",
}
_STATUSES = {
    401: _DENIED,
    403: _DENIED,
    404: _MISSING,
    407: "the proxy denies access",
    408: _TIMED_OUT,
    410: _MISSING,
    413: "a file is too large for it",
    429: "there were too many requests",
    504: _TIMED_OUT,
}
_PASSING = (_UNREACHABLE, _TIMED_OUT, CUT_OFF, _STATUSES[429])
# What the user can correct. Everything else may pass by itself.
_USER_REASONS = frozenset(
    reason for reason in (*_REASONS.values(), *_STATUSES.values()) if reason not in _PASSING
)
_NO_BUCKET = "NoSuchBucket"
# Also of two requests at the same time.
_EXISTING_CODES = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
_MAX_CAUSES = 5


@contextmanager
def location_errors() -> Iterator[None]:
    """Turn whatever a file system raises into a LocationError; our own errors pass through."""
    try:
        yield
    except (LocationError, BatchError, AssertionError):
        raise
    except Exception as error:
        # The libraries behind the URLs have no common class of errors.
        raise place_error(error) from error


def place_error(error: Exception) -> LocationError:
    """Word an error of a library behind a URL."""
    code = _store_code(error)
    if code == _NO_BUCKET:
        return LocationError("the bucket does not exist", is_users=True)
    telling = _telling(error)
    reason = _reason(telling)
    if reason is None:
        number = getattr(telling, "errno", None)
        reason = os.strerror(number) if number else type(telling).__name__
    is_users = reason in _USER_REASONS
    return LocationError(f"{reason} ({code})" if code else reason, is_users)


def is_missing(error: Exception) -> bool:
    """Whether an error says that a file is missing in a place that exists."""
    return _reason(_telling(error)) == _MISSING and _store_code(error) != _NO_BUCKET


def is_existing(error: Exception) -> bool:
    """Whether an error says that a file that was to be created is there."""
    return isinstance(error, FileExistsError) or _store_code(error) in _EXISTING_CODES


def is_unsupported(error: Exception) -> bool:
    """Whether an error says that a store does not know a kind of request."""
    return isinstance(error, NotImplementedError) or _store_code(error) == "NotImplemented"


@contextmanager
def output_errors(what: str) -> Iterator[None]:
    """Word an error of the place that `--output-dir` names; see `output_error`."""
    try:
        yield
    except LocationError as error:
        raise output_error(what, error) from error


def output_error(what: str, error: LocationError) -> BatchError:
    """Word an error of the place that `--output-dir` names.

    Args:
        what: the predicate, for example "cannot be written".
        error: of the place.
    """
    kind = UsageError if error.is_users else StorageError
    return kind(f"--output-dir: {what}: {error.reason}")


def _telling(error: BaseException) -> BaseException:
    """Return the error that says most: some libraries raise "no such file" for all others."""
    found = error
    for _ in range(_MAX_CAUSES):
        if _reason(found) not in (None, _MISSING):
            return found
        if found.__cause__ is None:
            break
        found = found.__cause__
    return error


def _reason(error: BaseException) -> str | None:
    """Word an error by its class or by the status of an HTTP answer; None for an unknown one."""
    names = (kind.__name__ for kind in type(error).__mro__)
    known = next((_REASONS[name] for name in names if name in _REASONS), None)
    if known is not None:
        return known
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "status", None)
    if not isinstance(status, int):
        # Last: some libraries make a ValueError of an answer, too.
        return _INVALID if isinstance(error, ValueError) else None
    return _STATUSES.get(status, f"the store answered with status {status}")


def _store_code(error: BaseException) -> str | None:
    """Return the code in a store's own answer, which says more than the translated error."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return None
        response: Any = getattr(cause, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        if isinstance(code, str) and code.isalpha():
            return code
        cause = cause.__cause__
    return None
