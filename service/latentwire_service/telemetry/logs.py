"""Log records without absolute paths, in messages and in tracebacks.

Tracebacks are bounded, hold file names instead of paths and neither source lines nor variables.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import traceback
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType

from pydantic import ValidationError

from latentwire.validation import describe

# A web address, which is kept, or a path of at least two names. A double slash ends an address:
# transformers quotes addresses followed by an absolute path (https://host//tmp/x).
_NAME = r"[\w.@+-](?:[\w.@+ -]*[\w.@+-])?"
_ADDRESS_OR_PATH = re.compile(
    r"(?P<address>\bhttps?://[^\s/]+(?:/(?!/)[^\s/]+)*)"
    r"|(?:(?<![\w.])|(?=//))(?:~|[A-Za-z]:)?(?:[/\\]+" + _NAME + r")+[/\\]+(?P<last>[\w.@+-]+)"
)
_BASE_NAME = re.compile(r".*[/\\]")
_MAX_EXCEPTIONS = 8
_MAX_FRAMES = 30
_MAX_MESSAGE_CHARS = 2000
_CAUSED = "The above exception was the direct cause of the following exception:"
_HANDLED = "During handling of the above exception, another exception occurred:"

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that the current task works on; its log records carry it."""

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def without_paths(text: str) -> str:
    """Replace each absolute path in a text by its last part."""
    return _ADDRESS_OR_PATH.sub(_shortened, text)


def _shortened(found: re.Match[str]) -> str:
    if found["address"]:
        return found["address"]
    return ("/" if found[0].startswith("//") else "") + found["last"]


def format_traceback(error: BaseException) -> str:
    """Format an exception with the exceptions that led to it, the first one on top.

    Each frame is `file:line in function`. Only the innermost frames, the last exceptions and the
    beginning of a long message are kept. A validation error is described without its input.
    """
    blocks: list[str] = []
    for link, each in _with_causes(error):
        if link:
            blocks.insert(0, link)
        blocks.insert(0, "\n".join([*_frames(each), f"{type(each).__name__}: {_message(each)}"]))
    return "\n".join(blocks)


def _with_causes(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    """Yield an exception, its cause, the cause's cause, each with the link to the one before."""
    link, following, seen = "", error, set[int]()
    while id(following) not in seen and len(seen) < _MAX_EXCEPTIONS:
        seen.add(id(following))
        yield link, following
        cause, context = following.__cause__, following.__context__
        if cause is not None:
            link, following = _CAUSED, cause
        elif context is not None and not following.__suppress_context__:
            link, following = _HANDLED, context


def _frames(error: BaseException) -> Iterator[str]:
    # Walked here, because the standard library's summary of a stack looks at source files on disk,
    # and this may run on the event loop.
    for frame, line in deque(traceback.walk_tb(error.__traceback__), maxlen=_MAX_FRAMES):
        name = _BASE_NAME.sub("", frame.f_code.co_filename)
        yield f"  {name}:{line} in {frame.f_code.co_name}"


def _message(error: BaseException) -> str:
    text = describe(error) if isinstance(error, ValidationError) else str(error)
    host = socket.gethostname()
    if host and host != "localhost":
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "localhost", text)
    return text if len(text) <= _MAX_MESSAGE_CHARS else f"{text[:_MAX_MESSAGE_CHARS]}..."


class PathlessFormatter(logging.Formatter):
    """Formats records and tracebacks with file names only."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, paths cut."""
        return without_paths(super().format(record))

    def formatException(self, ei: _ExcInfo) -> str:
        """Return the traceback, as `format_traceback` does."""
        _, error, _ = ei
        return "" if error is None else format_traceback(error)


class JsonFormatter(PathlessFormatter):
    """Formats records as one JSON object per line, with the extra fields that they carry."""

    _EXTRA = ("request_id", "plan_id", "method", "route", "status", "duration_ms", "caller")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, paths cut."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_paths(record.getMessage()),
        }
        given = {name: getattr(record, name, None) for name in self._EXTRA}
        line |= {name: value for name, value in given.items() if value not in (None, "")}
        if record.exc_info:
            line["exception"] = without_paths(self.formatException(record.exc_info))
        return json.dumps(line)


def add_request_id(record: logging.LogRecord) -> bool:
    """Give a record the id of the current request; a filter that keeps every record."""
    own_id = request_id.get()
    vars(record).update(request_id=own_id, for_request=f" [{own_id}]" if own_id else "")
    return True


def drop_library_traceback(record: logging.LogRecord) -> bool:
    """Cut the traceback with which OpenTelemetry logs a variable that it cannot use."""
    if record.name.startswith("opentelemetry."):
        record.exc_info = None
    return True


def configure_logging(level: str, log_format: str = "text") -> None:
    """Write all records of at least `level` to standard error, as `text` or `json`."""
    handler = logging.StreamHandler()
    text = PathlessFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s%(for_request)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    handler.addFilter(add_request_id)
    handler.addFilter(drop_library_traceback)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # The app logs one line per request itself, without the query that uvicorn would log.
    logging.getLogger("uvicorn.access").disabled = True
    # uvicorn's start and stop messages would bury the one line that says why the service ended.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
