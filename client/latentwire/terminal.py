"""The standard streams: text that a terminal cannot show, and output that cannot be written."""

from __future__ import annotations

import io
import os
import sys


def replace_unencodable() -> None:
    """Show `?` for what the encoding of standard output or error lacks, instead of failing.

    The locale or `PYTHONIOENCODING` decides the encoding. Files are UTF-8 whatever it is.
    """
    for stream in (sys.stdout, sys.stderr):
        # A caller may have put another object in place.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def discard_output() -> None:
    """Send what is left of standard output nowhere, so that Python's exit does not fail on it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):
        # There is no standard output, or it is not a file.
        pass
    finally:
        os.close(nowhere)
