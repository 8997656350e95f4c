"""Prompts to token ids, through the model's chat template and tokenizer.

A prompt depends on its texts and a date, never on this machine's clock or time zone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from latentwire_service.engine.errors import InvalidParamsError
from latentwire_service.engine.hf.chat_template import ChatTemplate, Pieces, bare, chatml
from latentwire_service.engine.prompt import Conversation, Prompt

# Not failures of a tokenizer.
_OURS = (KeyboardInterrupt, SystemExit, MemoryError)
_MAX_REASON_CHARS = 300


class PromptEncoder:
    """Makes prompts for one model.

    Args:
        tokenizer: a Hugging Face tokenizer.
        eos_token_ids: tokens that end generation.
        ignores_template: use the bare prompt in place of the tokenizer's own template.

    Raises:
        UnsupportedModelError: the tokenizer's template cannot carry a task.
    """

    def __init__(
        self, tokenizer: Any, eos_token_ids: Collection[int], *, ignores_template: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = {*eos_token_ids, tokenizer.eos_token_id} - {None}
        self._end_token_ids = self._eos_token_ids | _added_at_end(tokenizer)
        has_template = bool(tokenizer.chat_template) and not ignores_template
        self._template = ChatTemplate(tokenizer) if has_template else None

    def encode(self, conversation: Conversation) -> Prompt:
        """Tokenize a prompt.

        Args:
            conversation: what the prompt is made of. Around latents, each piece of text is
                tokenized by itself, without special tokens that it does not have.

        Raises:
            InvalidParamsError: the tokenizer or its template fails on this conversation.
        """
        with _naming(conversation.field):
            return self._encode(conversation)

    def encode_plan(self, text: str) -> Prompt:
        """Tokenize a text alone, without special tokens that it does not have.

        Raises:
            InvalidParamsError: the tokenizer fails on this text.
        """
        with _naming("plan"):
            return self._joined([text])

    def _encode(self, conversation: Conversation) -> Prompt:
        if conversation.chat_template == "auto" and self._template is not None:
            day = conversation.day or datetime.now(UTC).date()
            # The template writes its own special tokens; adding them again would double the first.
            prompt = self._joined(self._template.render(conversation, day))
            return replace(prompt, day=day) if self._template.is_dated else prompt
        if conversation.template_kwargs:
            raise InvalidParamsError(
                "chat_template_kwargs", "the prompt is made without the model's own chat template"
            )
        is_chatml = conversation.chat_template == "qwen"
        pieces = chatml(conversation) if is_chatml else bare(conversation.turns)
        if len(pieces) == 1 and isinstance(pieces[0], str):
            return Prompt(tuple(self._bare(pieces[0])))
        return self._joined(pieces)

    def _joined(self, pieces: Pieces) -> Prompt:
        encode = self._tokenizer.encode
        return Prompt.joined(
            encode(piece, add_special_tokens=False) if isinstance(piece, str) else piece
            for piece in pieces
        )

    def _bare(self, text: str) -> list[int]:
        """Tokenize without a template, so that the model continues the text.

        Tokenizers may add a beginning-of-sequence token, even to a text that has one. They may also
        add a token behind the text, after which a model begins another one.
        """
        token_ids = list(self._tokenizer.encode(text))
        begin = self._tokenizer.bos_token_id
        is_doubled = begin is not None and token_ids[:2] == [begin, begin]
        if not (is_doubled or (token_ids and token_ids[-1] in self._end_token_ids)):
            return token_ids
        written = list(self._tokenizer.encode(text, add_special_tokens=False))
        num_ends = _num_leading(reversed(token_ids), self._end_token_ids.__contains__)
        num_written = _num_leading(reversed(written), self._end_token_ids.__contains__)
        # A prompt of nothing but such tokens is left to the caller.
        if num_written < num_ends < len(token_ids) or not written:
            token_ids = token_ids[: len(token_ids) - (num_ends - num_written)]
        if is_doubled:
            num_begins = _num_leading(token_ids, begin.__eq__)
            num_kept = max(1, _num_leading(written, begin.__eq__))
            token_ids = token_ids[max(0, num_begins - num_kept) :]
        return token_ids


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Turn any failure of tokenizer and template into an error that names a field."""
    try:
        yield
    except (InvalidParamsError, *_OURS):
        raise
    except BaseException as error:
        # Foreign code that runs for one request, with a text that the request chose. A panic in
        # Rust is no `Exception`.
        reason = " ".join(str(error).split())[:_MAX_REASON_CHARS]
        raise InvalidParamsError(
            field, f"the tokenizer or its chat template fails on the text: {reason}"
        ) from error


def _added_at_end(tokenizer: Any) -> set[int]:
    """Return the tokens that a tokenizer adds behind a text: end of sequence, separators."""
    try:
        added = list(tokenizer.encode("Go"))
        written = list(tokenizer.encode("Go", add_special_tokens=False))
    except _OURS:
        raise
    except BaseException:
        # It may fail on this text and not on others.
        return set()
    for start in range(len(added) - len(written) + 1):
        if written and added[start : start + len(written)] == written:
            return set(added[start + len(written) :])
    return set()


def _num_leading(token_ids: Any, is_counted: Callable[[int], Any]) -> int:
    count = 0
    for token_id in token_ids:
        if is_counted(token_id) is not True:
            break
        count += 1
    return count
