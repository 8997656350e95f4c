"""Generated tokens to text, as far as needed to see stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

# Byte-level tokens that do not yet make a character decode to this one.
_REPLACEMENT = "\ufffd"


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer; Hugging Face's have it."""

    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = False) -> str:
        """Return the text of the tokens."""
        ...


class Detokenizer:
    """Watches one request's tokens for its stop strings.

    Text is decoded from a short window of the last tokens, not from the start, so that a step costs
    the same at token 10 and at token 1,000. The window begins one decoded piece back, because a
    token's text can depend on the one before it (leading spaces), and is held open while its end is
    an unfinished multi-byte character. (The prefix-offset idea of text-generation-inference.)
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tail_chars = max((len(text) for text in stop), default=1) - 1
        self._token_ids: list[int] = []
        self._window_start = 0
        self._read_until = 0
        self._text = ""

    def append(self, token_id: int) -> bool:
        """Take the next token; return whether the text now holds a stop string."""
        if not self._stop:
            return False
        self._token_ids.append(token_id)
        prefix = self._decode(self._token_ids[self._window_start : self._read_until])
        window = self._decode(self._token_ids[self._window_start :])
        if len(window) <= len(prefix) or window.endswith(_REPLACEMENT):
            return False
        self._window_start, self._read_until = self._read_until, len(self._token_ids)
        search_from = max(0, len(self._text) - self._tail_chars)
        self._text += window[len(prefix) :]
        return any(self._text.find(stop, search_from) >= 0 for stop in self._stop)

    def final_text(self, token_ids: Sequence[int]) -> str:
        """Return the whole text, cut before the first stop string in it."""
        text = self._decode(token_ids)
        cuts = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else text

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)
