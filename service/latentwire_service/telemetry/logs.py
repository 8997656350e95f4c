"""Log lines that give nothing away: no absolute path, neither in a message nor in a traceback."""

from __future__ import annotations

import json
import logging
import re
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType

# A web address, kept; or a path of two names or more. A double slash within an address ends it:
# transformers quotes addresses that go on with an absolute path (https://host//tmp/x).
_NAME = r"[\w.@+-](?:[\w.@+ -]*[\w.@+-])?"
_ADDRESS_OR_PATH = re.compile(
    r"(?P<address>\bhttps?://[^\s/]+(?:/(?!/)[^\s/]+)*)"
    r"|(?:(?<![\w.])|(?=//))(?:~|[A-Za-z]:)?(?:[/\\]+" + _NAME + r")+[/\\]+(?P<last>[\w.@+-]+)"
)

# Of the request that is being worked on; its records carry it.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def without_paths(text: str) -> str:
    """Replace each absolute path in a text by its last part."""
    return _ADDRESS_OR_PATH.sub(_shortened, text)


def _shortened(found: re.Match[str]) -> str:
    if found["address"]:
        return found["address"]
    return ("/" if found[0].startswith("//") else "") + found["last"]


class PathlessFormatter(logging.Formatter):
    """Formats records and tracebacks with file names only."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, paths cut."""
        return without_paths(super().format(record))

    def formatException(self, ei: _ExcInfo) -> str:
        """Return the traceback as one `name:line in function` per frame."""
        _, error, trace = ei
        frames = [
            f"  {frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} in {frame.name}"
            for frame in traceback.extract_tb(trace)
        ]
        return "\n".join([*frames, f"{type(error).__name__}: {error}"])


class JsonFormatter(PathlessFormatter):
    """Formats records as one JSON object per line, with what they carry beside their message."""

    _EXTRA = ("request_id", "method", "route", "status", "duration_ms", "caller")

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


def _add_request_id(record: logging.LogRecord) -> bool:
    own_id = request_id.get()
    vars(record).update(request_id=own_id, for_request=f" [{own_id}]" if own_id else "")
    return True


def configure_logging(level: str, log_format: str = "text") -> None:
    """Send all records from `level` on to standard error, as `text` or `json`."""
    handler = logging.StreamHandler()
    text = PathlessFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s%(for_request)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    handler.addFilter(_add_request_id)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # One line per request comes from the app, without the query that uvicorn would show.
    logging.getLogger("uvicorn.access").disabled = True
    # Its narration of start and end buries the one line that says why there was an end.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
