"""One JSON list, decoded element by element: memory is bounded by the largest element.

Built on the standard library's decoder, because ijson reads some texts differently (half of a
surrogate pair) and others not at all (NaN), and crashes on long numbers: see ADR 7.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

from latentwire_batch.errors import InputError

_CHUNK_CHARS = 1 << 16
# One element is held whole; a broken one must not pull the rest of the file into memory.
_MAX_ELEMENT_CHARS = 1 << 28
# Every token but a string is shorter. An error further than this from the end of the window is an
# error of the file; a closer one may only be a token that the window cuts in two.
_MAX_TOKEN_CHARS = 1 << 13


def list_elements(
    file: TextIO, chunk_chars: int = _CHUNK_CHARS, max_token_chars: int = _MAX_TOKEN_CHARS
) -> Iterator[Any]:
    """Yield the elements of the JSON list that a text file holds.

    Args:
        file: open at its start.
        chunk_chars: smallest number of characters to read at a time.
        max_token_chars: longest token that is not a string, in characters.

    Raises:
        InputError: when the file is not one JSON list, naming the element at fault.
        UnicodeDecodeError: when the file is not in its encoding.
    """
    window = _TextWindow(file, chunk_chars, max_token_chars)
    window.skip("[")
    index = 0
    while window.peek() != "]":
        if index:
            window.skip(",")
        yield window.decode_element(index)
        index += 1
    window.skip("]")
    if window.peek():
        raise InputError("more text follows the end of the JSON list")


def over_limit(error: Exception) -> str:
    """Name the limit of Python's decoder that valid JSON exceeded."""
    if isinstance(error, RecursionError):
        return "lists or objects are nested too deeply"
    return "a number has too many digits"


class _TextWindow:
    """The unread part of a text file, of which only a window is in memory."""

    def __init__(self, file: TextIO, chunk_chars: int, max_token_chars: int) -> None:
        self._file = file
        self._chunk_chars = chunk_chars
        self._max_token_chars = max_token_chars
        self._text = ""
        self._position = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Skip white space and return the next character; empty at the end of the file."""
        while True:
            while self._position < len(self._text):
                if not self._text[self._position].isspace():
                    return self._text[self._position]
                self._position += 1
            if not self._read_more():
                return ""

    def skip(self, expected: str) -> None:
        """Pass over one punctuation mark.

        Raises:
            InputError: when the next character is another one.
        """
        found = self.peek()
        if found != expected:
            what = f"{found!r}" if found else "the end of the file"
            raise InputError(f"not a JSON list of objects: {what} where {expected!r} was expected")
        self._position += 1

    def decode_element(self, index: int) -> Any:
        """Decode the element that starts at the next character.

        Raises:
            InputError: naming the element, when it is not JSON.
        """
        self.peek()
        while True:
            try:
                value, self._position = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if not self._may_be_cut_off(error) or not self._read_more():
                    raise InputError(f"row {index}: not JSON ({error.msg})") from error
            except (RecursionError, ValueError) as error:
                # More text cannot repair it.
                raise InputError(f"row {index}: {over_limit(error)}") from error
            else:
                return value

    def _may_be_cut_off(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may come from the end of the window instead of the file's text."""
        if len(self._text) > _MAX_ELEMENT_CHARS:
            return False
        # An unfinished string is reported where it begins.
        is_string = self._text[error.pos : error.pos + 1] == '"'
        return is_string or error.pos + self._max_token_chars > len(self._text)

    def _read_more(self) -> bool:
        # Reading as much again as is held keeps the total work on a long element linear.
        held = self._text[self._position :]
        chunk = self._file.read(max(self._chunk_chars, len(held)))
        self._text, self._position = held + chunk, 0
        return bool(chunk)
