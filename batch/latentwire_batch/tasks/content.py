"""The format of a file by its first bytes: one that is read, or one that is refused by its name.

The name of a file says nothing here.
"""

from __future__ import annotations

import codecs
import json
import re
from enum import Enum, auto

from latentwire_batch.errors import InputError
from latentwire_batch.tasks.compression import compression_of
from latentwire_batch.tasks.turns import CONVERSATION_FIELDS

HEAD_BYTES = 4096
_CONVERT = "convert it to JSON Lines or Parquet"
_UNPACK = "unpack it first"
_EMPTY = "empty"
_LFS_POINTER = "a Git LFS pointer instead of the data; fetch the data with `git lfs pull`"
_PICKLE = f"a Python pickle, which can run code when it is loaded; {_CONVERT}"
# A field, anywhere in a text, that holds a list of objects.
_LIST_FIELD = re.compile(r'"([^"\\]*)"\s*:\s*\[\s*\{')
_TAR_OFFSET, _TAR_MAGIC = 257, b"ustar"

# Longer marks come before those that begin like them.
_REFUSED: dict[bytes, str] = {
    codecs.BOM_UTF32_LE: "UTF-32 text; convert it to UTF-8",
    codecs.BOM_UTF32_BE: "UTF-32 text; convert it to UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16 text; convert it to UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text; convert it to UTF-8",
    b"PARE": "an encrypted Parquet file; decrypt it first",
    b"ORC": f"an ORC file; {_CONVERT}",
    b"Obj\x01": f"an Avro file; {_CONVERT}",
    b"FEA1": f"a Feather file; {_CONVERT}",
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file; {_CONVERT}",
    b"\x93NUMPY": f"a NumPy array; {_CONVERT}",
    b"SQLite format 3\0": f"an SQLite database; {_CONVERT}",
    b"\xd0\xcf\x11\xe0": f"an old Excel or Word document; {_CONVERT}",
    b"GGUF": "a GGUF model, not a dataset",
    b"%PDF-": "a PDF document",
    b"{\\rtf": "an RTF document",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"7z\xbc\xaf'\x1c": f"a 7z archive; {_UNPACK}",
    b"Rar!": f"a RAR archive; {_UNPACK}",
    b"\x1f\x9d": f"a compressed file (.Z); {_UNPACK}",
    b"\x7fELF": "a program",
    b"version https://git-lfs": _LFS_POINTER,
    **{b"\x80" + bytes([protocol]): _PICKLE for protocol in range(2, 6)},
}


class Content(Enum):
    """Formats that are read."""

    ARROW = auto()
    """A Parquet file, an Arrow file, or an Arrow stream."""
    JSON_LIST = auto()
    JSON_LINES = auto()


_ARROW_MAGIC = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")


def content_of(head: bytes, compression: str | None = None) -> Content:
    """Recognise a format.

    Args:
        head: the first `HEAD_BYTES` of the decompressed content.
        compression: of the file that holds the content.

    Raises:
        InputError: when the format is none that is read, naming it.
    """
    inner = compression_of(head) if compression else None
    if inner is not None:
        raise InputError(f"is {compression} data inside which is {inner} data; {_UNPACK}")
    refused = _refused(head)
    if refused is not None:
        held = "no data" if refused == _EMPTY else refused
        raise InputError(f"holds {held}" if compression else f"is {refused}")
    if head.startswith(_ARROW_MAGIC):
        if compression:
            raise InputError(f"is a {compression}-compressed Parquet or Arrow file; {_UNPACK}")
        return Content.ARROW
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return Content.JSON_LIST if start.startswith(b"[") else Content.JSON_LINES


def _refused(head: bytes) -> str | None:
    for magic, phrase in _REFUSED.items():
        if head.startswith(magic):
            return phrase
    if head[_TAR_OFFSET:].startswith(_TAR_MAGIC):
        return f"a tar archive; {_UNPACK}"
    if head.startswith(_ARROW_MAGIC):
        return None
    if b"\0" in head and not _is_json_start(head):
        return _with_nul_bytes(head)
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    return _EMPTY if not text and len(head) < HEAD_BYTES else _refused_text(text)


def _is_json_start(head: bytes) -> bool:
    """Whether it is JSON text, of which only some lines may hold NUL bytes."""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return start[:1] in (b"[", b"{") and start[1:2] != b"\0"


def _with_nul_bytes(head: bytes) -> str:
    if not head.strip(b"\0"):
        return "binary data of NUL bytes alone: the program that wrote it has not finished"
    # The header of a safetensors file is a length and then JSON.
    if head[8:9] == b"{" and head[9:10] != b"\0":
        return "a safetensors file, not a dataset"
    # The first characters of JSON and of tables are ASCII.
    match [byte == 0 for byte in head[:4]]:
        case [False, True, True, True] | [True, True, True, False]:
            return "UTF-32 text; convert it to UTF-8"
        case [False, True, False, True] | [True, False, True, False]:
            return "UTF-16 text; convert it to UTF-8"
    return f"binary data of an unknown format; {_CONVERT}"


def _refused_text(text: str) -> str | None:
    """Name text that is not JSON; None for text that may be."""
    if not text or text[0] == "[":
        return None
    if text[0] == "{":
        return _several_lines(text)
    line = text.splitlines()[0]
    if _is_json(line):
        # A value without fields: the row is refused by its place.
        return None
    if text.startswith("<"):
        is_page = "<html" in text.lower() or text.lower().startswith("<!doctype html")
        return "an HTML page instead of the data" if is_page else f"XML; {_CONVERT}"
    if "\t" in line:
        return f"a table of tab-separated values (TSV); {_CONVERT}"
    if re.match(r"(---\s*$|- |[\w-]+:(\s|$))", line):
        return f"YAML; {_CONVERT}"
    if "," in line or ";" in line:
        return f"a table of comma-separated values (CSV); {_CONVERT}"
    return f"plain text, not JSON; {_CONVERT}"


def _several_lines(text: str) -> str | None:
    """Name an object that spans several lines; None for one that ends on its line."""
    first, _, rest = text.partition("\n")
    if not rest.lstrip().startswith('"'):
        return None
    if not _is_unfinished(first.rstrip()):
        return None
    for match in _LIST_FIELD.finditer(text):
        if match[1] not in CONVERSATION_FIELDS:
            return (
                f"one JSON object, whose field {match[1]!r} holds a list; pass that list by itself"
            )
    return (
        "JSON whose objects span several lines, so that line 1 is not JSON by itself; write one "
        "object per line, or one list of objects"
    )


def _is_unfinished(line: str) -> bool:
    """Whether a line is JSON up to its end, where something is missing."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line)
    except (ValueError, RecursionError):
        return False
    return False


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
