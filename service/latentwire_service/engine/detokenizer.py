"""From generated tokens to text: its growth step by step, and its end at a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from latentwire_service.engine.errors import DetokenizationError

# An unfinished multi-byte character decodes to this one.
_REPLACEMENT = "\ufffd"
# A character has at most 4 bytes. Tokens that never complete one, and special tokens, which have no
# text, must not keep the window open for ever: decoding it in every step would be quadratic.
_MAX_OPEN_TOKENS = 8


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer; those of Hugging Face satisfy it."""

    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = False) -> str:
        """Return the text of the tokens."""
        ...


class Detokenizer:
    """Finds the stop strings of one request in its text, and returns the growth of the text.

    Text is decoded from a short window of the last tokens, not from the start, so that a step costs
    the same at token 10 and at token 1,000. The window begins one decoded piece back, because a
    token's text can depend on the one before it (leading spaces), and is held open while its end is
    an unfinished multi-byte character. (The prefix-offset idea of text-generation-inference.)

    Args:
        tokenizer: turns tokens into text.
        stop: strings that end the text; they are not part of it.
        is_streaming: whether `take_text` will be called. Without streaming and stop strings,
            nothing is decoded before the end.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], *, is_streaming: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._is_needed = bool(stop) or is_streaming
        self._tail_chars = max((len(text) for text in stop), default=1) - 1
        self._token_ids: list[int] = []
        self._window_start = 0
        self._read_until = 0
        self._text = ""
        self._num_taken = 0
        self._num_searched = 0

    def append(self, token_id: int) -> bool:
        """Take the next token; return whether the text now holds a stop string.

        Raises:
            DetokenizationError: the tokenizer fails.
        """
        if not self._is_needed:
            return False
        self._token_ids.append(token_id)
        prefix = self._decode(self._token_ids[self._window_start : self._read_until])
        window = self._decode(self._token_ids[self._window_start :])
        is_open = len(window) <= len(prefix) or window.endswith(_REPLACEMENT)
        if is_open and len(self._token_ids) - self._read_until < _MAX_OPEN_TOKENS:
            return self._has_stop(self._text + window[len(prefix) :].rstrip(_REPLACEMENT))
        self._window_start, self._read_until = self._read_until, len(self._token_ids)
        self._text += window[len(prefix) :]
        return self._has_stop(self._text)

    def take_text(self, all_token_ids: Sequence[int] | None) -> str:
        """Return the text since the last call that no later token can change.

        Args:
            all_token_ids: all tokens, when generation has ended: the rest of the final text is
                returned. None before that.
        """
        if all_token_ids is None:
            end = len(self._text) - self._num_held()
            taken = self._text[self._num_taken : end]
            self._num_taken += len(taken)
            return taken
        final = self.final_text(all_token_ids)
        # Invalid UTF-8 can decode differently once more bytes follow. Then no rest completes the
        # text; the caller compares what was taken with the final text.
        return final[self._num_taken :] if self._is_start_taken(final) else ""

    def final_text(self, token_ids: Sequence[int]) -> str:
        """Return the whole text, cut before the first stop string in it.

        Raises:
            DetokenizationError: the tokenizer fails.
        """
        text = self._decode(token_ids)
        cuts = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else text

    def _is_start_taken(self, final: str) -> bool:
        return final.startswith(self._text[: self._num_taken])

    def _has_stop(self, text: str) -> bool:
        """Whether a stop string ends in the last piece of the text, which is not searched yet."""
        search_from = max(0, self._num_searched - self._tail_chars)
        self._num_searched = len(self._text)
        return any(text.find(stop, search_from) >= 0 for stop in self._stop)

    def _num_held(self) -> int:
        """Count characters at the end of the text that may be the beginning of a stop string."""
        text, longest = self._text, min(self._tail_chars, len(self._text) - self._num_taken)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop if len(stop) > length):
                return length
        return 0

    def _decode(self, token_ids: Sequence[int]) -> str:
        try:
            return self._tokenizer.decode(token_ids, skip_special_tokens=True)
        except Exception as error:
            # Foreign code that runs for one request: only that request fails.
            raise DetokenizationError("the tokenizer cannot decode the tokens") from error
