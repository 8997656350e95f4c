"""Log lines that give nothing away: no absolute path, neither in a message nor in a traceback."""

from __future__ import annotations

import logging
import re
import traceback
from types import TracebackType

# A web address, kept; or a path of two names or more. A double slash within an address ends it:
# transformers quotes addresses that go on with an absolute path (https://host//tmp/x).
_NAME = r"[\w.@+-](?:[\w.@+ -]*[\w.@+-])?"
_ADDRESS_OR_PATH = re.compile(
    r"(?P<address>\bhttps?://[^\s/]+(?:/(?!/)[^\s/]+)*)"
    r"|(?:(?<![\w.])|(?=//))(?:~|[A-Za-z]:)?(?:[/\\]+" + _NAME + r")+[/\\]+(?P<last>[\w.@+-]+)"
)

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


def configure_logging(level: str) -> None:
    """Send all records from `level` on to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(PathlessFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # One line per request comes from the app, without the query that uvicorn would show.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("httpx").setLevel(logging.WARNING)
