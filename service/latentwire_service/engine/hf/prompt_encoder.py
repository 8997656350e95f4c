"""Prompt texts to token ids, through the model's chat template and tokenizer.

The template is rendered once at start: one that raises, or loses the task, is told before the first
request. What a prompt depends on is its text and a date, never this machine's clock or time zone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, time
from typing import Any

from transformers.utils import chat_template_utils

from latentwire_service.engine.errors import InvalidParamsError, UnsupportedModelError
from latentwire_service.engine.prompt import CHATML, Prompt

_SENTINEL = "latentwire sentinel 7f3a9c"
_ANY_DATE = date(2024, 2, 29)
# Enough to notice a template that draws lots.
_NUM_RENDERINGS = 8


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
        self._has_template = bool(tokenizer.chat_template) and not ignores_template
        if self._has_template:
            self._check_template()

    def encode(self, text: str, chat_template: str, day: date | None = None) -> Prompt:
        """Tokenize a prompt.

        Args:
            text: the filled template.
            chat_template: `auto` (the tokenizer's own template if it has one, else the bare text),
                `none`, or `qwen` (ChatML: one user turn, an opened assistant turn).
            day: the date that the tokenizer's template writes; None: today, in UTC.

        Raises:
            InvalidParamsError: the tokenizer or its template fails on this text.
        """
        try:
            if chat_template == "auto" and self._has_template:
                chat = self._render(text, day or datetime.now(UTC).date())
                # The template writes its own special tokens; adding them again would double the
                # first.
                return Prompt(tuple(self._tokenizer.encode(chat, add_special_tokens=False)))
            if chat_template == "qwen":
                text = CHATML.replace("{prompt}", text)
            return Prompt(tuple(self._bare(text)))
        except BaseException as error:
            # Foreign code that runs for one request, with a text that the request chose. A panic in
            # Rust is no `Exception`.
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise InvalidParamsError(
                "task", f"the tokenizer or its chat template fails on the prompt: {error}"
            ) from error

    def _bare(self, text: str) -> list[int]:
        """Tokenize without a template, so that generation goes on from the text's end.

        Tokenizers may add a beginning-of-sequence token, also to a text that has one, and an
        end-of-sequence token, after which a model begins something else.
        """
        token_ids = list(self._tokenizer.encode(text))
        begin = self._tokenizer.bos_token_id
        is_doubled = begin is not None and token_ids[:2] == [begin, begin]
        if not (is_doubled or (token_ids and token_ids[-1] in self._eos_token_ids)):
            return token_ids
        written = list(self._tokenizer.encode(text, add_special_tokens=False))
        num_ends = _num_leading(reversed(token_ids), self._eos_token_ids.__contains__)
        num_written = _num_leading(reversed(written), self._eos_token_ids.__contains__)
        # A prompt of nothing but such tokens is left to the caller.
        if num_written < num_ends < len(token_ids) or not written:
            token_ids = token_ids[: len(token_ids) - (num_ends - num_written)]
        if is_doubled:
            num_begins = _num_leading(token_ids, begin.__eq__)
            num_kept = max(1, _num_leading(written, begin.__eq__))
            token_ids = token_ids[max(0, num_begins - num_kept) :]
        return token_ids

    def _render(self, text: str, day: date) -> str:
        messages = [{"role": "user", "content": text}]
        template = self._tokenizer.get_chat_template()
        if "strftime_now" not in template:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False
                )
            )
        # transformers gives templates this machine's clock, and lets no caller replace it.
        compile_template: Callable[[str], Any] = chat_template_utils._compile_jinja_template
        moment = datetime.combine(day, time(), UTC)
        return str(
            compile_template(template).render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._tokenizer.special_tokens_map,
                strftime_now=moment.strftime,
            )
        )

    def _check_template(self) -> None:
        reason = None
        try:
            rendered = {self._render(_SENTINEL, _ANY_DATE) for _ in range(_NUM_RENDERINGS)}
        except Exception as error:
            reason = f"it raises {type(error).__name__}: {error}"
        else:
            if any(_SENTINEL not in text for text in rendered):
                reason = "the task is not in the text that it makes"
            elif len(rendered) > 1:
                reason = "it makes another text each time"
        if reason is not None:
            raise UnsupportedModelError(
                f"the model's chat template cannot be used: {' '.join(reason.split())}; "
                "--ignore-chat-template serves the model with the bare prompt instead (collect: "
                "--chat-template none or qwen)"
            )


def _num_leading(token_ids: Any, is_counted: Callable[[int], Any]) -> int:
    count = 0
    for token_id in token_ids:
        if is_counted(token_id) is not True:
            break
        count += 1
    return count
