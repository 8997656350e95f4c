"""The terminal's encoding: text that it cannot show must not end a command."""

from __future__ import annotations

import io
import sys


def replace_unshowable_text() -> None:
    """Have standard output and error replace characters that their encoding lacks.

    The locale or `PYTHONIOENCODING` decides the encoding. Files are UTF-8 whatever it is.
    """
    for stream in (sys.stdout, sys.stderr):
        # A caller may have put another object in place.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
