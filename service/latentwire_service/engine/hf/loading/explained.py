"""Exceptions of the libraries below as one short sentence each."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from latentwire_service.engine.errors import (
    DamagedModelError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)

# Errors of the system that say nothing about the name or the files.
_OS_REASONS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
# transformers wraps these in an OSError, as it does for a missing file.
_UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError)
# The first that is found among an exception's causes explains it.
_HUB_REASONS: dict[type[Exception], str] = {
    GatedRepoError: "its owner gives access to accepted accounts only; request access on its page "
    "on the hub, then set HF_TOKEN",
    RevisionNotFoundError: "the hub has the model, but not this --revision",
    RepositoryNotFoundError: "the hub has no such model, or it is private and HF_TOKEN gives no "
    "access",
    LocalEntryNotFoundError: "there is no such directory, and the hub cannot be reached for a "
    "model that is not in its cache (HF_HOME)",
    HFValidationError: "there is no such directory, and a model of the hub is called `name` or "
    "`owner/name`",
}
# Two lines of a terminal. Some messages of transformers list every architecture.
_MAX_REASON_CHARS = 200


@contextmanager
def explained(failure: str, hint: str = "") -> Iterator[None]:
    """Turn an exception of the libraries into a `ModelError` that names the cause.

    Use it around library calls only: damaged files make the libraries raise anything, even a bare
    Exception. An exception of this package's own code is a bug, and must stay one.

    Args:
        failure: the start of the message.
        hint: the end of a message about the disk.
    """
    try:
        yield
    except ModelError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"{failure}: there is not enough memory") from error
    except ImportError as error:
        raise UnsupportedModelError(f"{failure}: {short(error)}") from error
    except Exception as error:
        found = list(causes(error))
        for cause in found:
            if isinstance(cause, OSError) and cause.errno in _OS_REASONS:
                raise ModelError(f"{failure}: {os.strerror(cause.errno)}{hint}") from error
        for kind, reason in _HUB_REASONS.items():
            if any(isinstance(cause, kind) for cause in found):
                raise ModelNotFoundError(f"{failure}: {reason}") from error
        is_unreadable = any(isinstance(cause, _UNREADABLE) for cause in found)
        if isinstance(error, OSError) and not is_unreadable:
            raise ModelNotFoundError(f"{failure}: {short(error)}") from error
        raise DamagedModelError(f"{failure}: {short(error)}") from error


def is_unreachable(error: Exception) -> bool:
    """Whether the hub gave no answer."""
    return any(isinstance(cause, LocalEntryNotFoundError) for cause in causes(error))


def short(error: Exception) -> str:
    """Return an exception's message on one line, cut where it gets long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_REASON_CHARS else f"{text[:_MAX_REASON_CHARS]}..."


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes, because libraries wrap errors of the system."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
