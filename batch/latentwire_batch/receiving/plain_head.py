"""The head of the usual answer, recognized with one expression. Pure.

A head is plain if there is nothing in it to interpret: a 200 with one length and one media type.
Every other head, also one that is merely spelled unusually, is left to `whole_answer`, which reads
all of HTTP/1.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from latentwire.constants import SAFETENSORS_MEDIA_TYPE

MAX_PLAIN_HEAD_BYTES = 4096
_HEAD = re.compile(
    rb"HTTP/1\.1 200(?: [\x20-\x7e]*)?\r\n"
    rb"((?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\x20-\x7e\t]*\r\n)+)\r\n"
)
_LENGTH = re.compile(rb"[1-9][0-9]{0,14}")
_MEDIA_TYPE = SAFETENSORS_MEDIA_TYPE.encode()
# Fields that change how the body or the connection is read, or that later requests depend on.
_INTERPRETED = frozenset(
    {
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"set-cookie",
        b"transfer-encoding",
        b"upgrade",
    }
)
_CONNECTION = {b"": True, b"keep-alive": True, b"close": False}


@dataclass(frozen=True, slots=True)
class PlainHead:
    """A head without anything to interpret.

    Attributes:
        num_bytes: of the head, with the empty line that ends it.
        body_bytes: of the body.
        keeps_alive: whether the connection can be used for another request.
    """

    num_bytes: int
    body_bytes: int
    keeps_alive: bool


def plain_head(received: bytes) -> PlainHead | None:
    """Read the head of an answer.

    Args:
        received: the answer from its start, as far as it has arrived.

    Returns:
        The head; None when it is not complete or not plain.
    """
    match = _HEAD.match(received)
    if match is None:
        return None
    fields: dict[bytes, bytes] = {}
    for line in match[1].split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _INTERPRETED:
            if name in fields:
                return None
            fields[name] = value.strip(b" \t")
    keeps_alive = _CONNECTION.get(fields.pop(b"connection", b"").lower())
    length = fields.pop(b"content-length", b"")
    media_type = fields.pop(b"content-type", b"").partition(b";")[0]
    if fields or keeps_alive is None or media_type != _MEDIA_TYPE or not _LENGTH.fullmatch(length):
        return None
    return PlainHead(match.end(), int(length), keeps_alive)
