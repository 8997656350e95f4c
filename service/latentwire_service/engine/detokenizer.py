"""From generated tokens to text: its growth step by step, and its end at a stop string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from latentwire_service.engine.errors import DetokenizationError

# An unfinished multi-byte character decodes to this one.
_REPLACEMENT = "\ufffd"
# A character has at most 4 bytes. Tokens that never complete one, and special tokens, which have no
# text, must not keep the window open without end: decoding it in every step would be quadratic.
_MAX_OPEN_TOKENS = 8


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer; those of Hugging Face satisfy it."""

    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = False) -> str:
        """Return the text of the tokens."""
        ...


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that decoding leaves out of the text.

    Attributes:
        text: the token's own text.
        takes_left: whether the tokenizer counts spaces before the text as part of the token.
        takes_right: the same for spaces after it.
    """

    text: str
    takes_left: bool = False
    takes_right: bool = False

    def is_all_of(self, text: str) -> bool:
        """Whether a text is this token and the spaces that belong to it."""
        text = text.lstrip() if self.takes_left else text
        text = text.rstrip() if self.takes_right else text
        return text == self.text


def special_tokens(tokenizer: Any) -> Mapping[int, SpecialToken]:
    """Return the special tokens of a Hugging Face tokenizer by id; of another one, none."""
    found = {
        token_id: SpecialToken(str(token), bool(token.lstrip), bool(token.rstrip))
        for token_id, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        if token.special
    }
    # Those of a tokenizer written in Python need not be among its added tokens.
    ids = getattr(tokenizer, "all_special_ids", [])
    texts = getattr(tokenizer, "all_special_tokens", [])
    for token_id, text in zip(ids, texts, strict=False):
        found.setdefault(token_id, SpecialToken(text))
    return {token_id: token for token_id, token in found.items() if token.text}


@dataclass(frozen=True, slots=True)
class _Cut:
    """The end of the plan: its first `num_tokens` tokens, and the start of the next one's text."""

    num_tokens: int
    tail: str = ""


class Detokenizer:
    """Finds the stop strings of one request in its text, and returns the growth of the text.

    Text is decoded from a short window of the last tokens, not from the start, so that a step costs
    the same at token 10 and at token 1,000. The window begins one decoded piece back, because a
    token's text can depend on the one before it (leading spaces), and is held open while its end is
    an unfinished multi-byte character. (The prefix-offset idea of text-generation-inference.)

    Args:
        tokenizer: turns tokens into text.
        stop: strings that end the text; they are not part of it. Special tokens in them match the
            tokens themselves, which have no text.
        stop_token_ids: tokens that end the text; they are not part of it.
        special: the tokenizer's special tokens.
        is_streaming: whether `take_text` will be called. Without streaming and stop strings,
            nothing is decoded before the end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        *,
        stop_token_ids: Sequence[int] = (),
        special: Mapping[int, SpecialToken] | None = None,
        is_streaming: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._special = special or {}
        self._stop_token_ids = {*stop_token_ids, *self._single_stop_tokens()}
        self._mixed_stop = tuple(text for text in self._stop if self._has_special(text))
        # A character may take four tokens.
        self._mixed_window = 4 * max((len(text) for text in self._mixed_stop), default=0)
        self._is_needed = bool(stop or stop_token_ids) or is_streaming
        self._cut: _Cut | None = None
        self._mixed_text = ""
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
        if token_id in self._stop_token_ids:
            self._cut = _Cut(len(self._token_ids) - 1)
            return True
        if self._mixed_stop and self._find_mixed_stop():
            return True
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
            end = max(self._num_taken, len(self._text) - self._num_held())
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
        if self._cut is None:
            text = self._decode(token_ids)
        else:
            text = self._decode(token_ids[: self._cut.num_tokens]) + self._cut.tail
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
        num_mixed = _num_begun(self._mixed_text, self._mixed_stop)
        text, longest = self._text, min(self._tail_chars, len(self._text) - self._num_taken)
        return max(num_mixed, _num_begun(text[len(text) - longest :], self._stop))

    def _single_stop_tokens(self) -> list[int]:
        """Return the special tokens that are a stop string by themselves."""
        return [
            token_id
            for text in self._stop
            for token_id, token in self._special.items()
            if token.is_all_of(text)
        ]

    def _has_special(self, text: str) -> bool:
        return any(
            token.text in text and not token.is_all_of(text) for token in self._special.values()
        )

    def _find_mixed_stop(self) -> bool:
        """Look for stop strings of special tokens and text; note where the plan ends then."""
        start = max(0, len(self._token_ids) - self._mixed_window)
        window = self._token_ids[start:]
        text = self._mixed_text = self._decode(window, skip_special_tokens=False)
        found = [at for stop in self._mixed_stop if (at := text.find(stop)) >= 0]
        if not found:
            return False
        position, num_whole, whole = min(found), len(window), text
        while len(whole) > position:
            num_whole -= 1
            whole = self._decode(window[:num_whole], skip_special_tokens=False)
        is_special = window[num_whole] in self._special
        self._cut = _Cut(start + num_whole, "" if is_special else text[len(whole) : position])
        return True

    def _decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        try:
            return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            # Foreign code that runs for one request: only that request fails. A panic in Rust, in
            # which many tokenizers are written, is no `Exception`.
            raise DetokenizationError("the tokenizer cannot decode the tokens") from error


def _num_begun(text: str, stop: Sequence[str]) -> int:
    """Return the length of the longest end of a text that a longer stop string begins with."""
    longest = min(len(text), max((len(each) for each in stop), default=0))
    for length in range(longest, 0, -1):
        if any(each.startswith(text[-length:]) for each in stop if len(each) > length):
            return length
    return 0
