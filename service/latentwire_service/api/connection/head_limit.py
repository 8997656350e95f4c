"""Heads that are too large.

Threat: a client sends a huge head in one piece. h11 limits only heads that are still incomplete,
so it would parse this one.
Limit: `--max-header-bytes`.
Mechanism: the unparsed bytes are searched for the end of the head before h11 reads them.
"""

from __future__ import annotations

import re

import h11

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


def exceeds_head_limit(connection: h11.Connection, max_bytes: int) -> bool:
    """Return whether the head that h11 would read next is larger than `max_bytes`."""
    if connection.their_state is not h11.IDLE:
        return False
    unread = connection.trailing_data[0]
    end = _END_OF_HEAD.search(unread)
    return (end.start() if end else len(unread)) > max_bytes
