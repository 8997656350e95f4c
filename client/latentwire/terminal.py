"""The terminal's encoding: text that it cannot show must not end a command."""

from __future__ import annotations

import io
import sys


def replace_unencodable() -> None:
    """Show `?` for what the encoding of standard output or error lacks, instead of failing.

    The locale or `PYTHONIOENCODING` decides the encoding. Files are UTF-8 whatever it is.
    """
    for stream in (sys.stdout, sys.stderr):
        # A caller may have put another object in place.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
