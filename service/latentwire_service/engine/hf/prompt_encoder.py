"""Prompt texts to token ids, through the model's chat template and tokenizer.

The template is rendered at start: one that raises, or does not carry a task as it is, is refused
before the first request. A prompt depends on its text and a date, never on this machine's clock or
time zone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, time
from functools import partial
from typing import Any

from transformers.utils import chat_template_utils

from latentwire_service.engine.errors import InvalidParamsError, UnsupportedModelError
from latentwire_service.engine.prompt import CHATML, Prompt

# A task that shows what a template does to it: letters of both cases, markup, braces, white space
# inside, and more characters than a template would keep that cuts tasks. Many models' templates
# strip white space around a task, which is left to them.
_SENTINEL = (
    "Task 7f3a9C\n\n  <b>&amp; \"x\" 'y'</b>\t{{ a }} {% b %} \\n \u00c4\u6587\U0001f600 "
    + "latentwire " * 2000
    + "end of the task"
)
# Not failures of a tokenizer.
_OURS = (KeyboardInterrupt, SystemExit, MemoryError)
_ANY_DATE = date(2024, 2, 29)
# A template that draws between two texts is missed once in 2**31 starts.
_NUM_RENDERINGS = 32
# Directives of `strftime`: "%%" is a percent sign, "%s" the seconds since 1970.
_SECONDS = re.compile("%(.)", re.DOTALL)


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
        self._has_template = bool(tokenizer.chat_template) and not ignores_template
        if self._has_template:
            self._check_template()
        self._is_dated = self._has_template and "strftime_now" in tokenizer.get_chat_template()

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
                day = day or datetime.now(UTC).date()
                # The template writes its own special tokens; adding them again would double the
                # first.
                token_ids = self._tokenizer.encode(
                    self._render(text, day), add_special_tokens=False
                )
                return Prompt(tuple(token_ids), day=day if self._is_dated else None)
            if chat_template == "qwen":
                text = CHATML.replace("{prompt}", text)
            return Prompt(tuple(self._bare(text)))
        except _OURS:
            raise
        except BaseException as error:
            # Foreign code that runs for one request, with a text that the request chose. A panic in
            # Rust is no `Exception`.
            raise InvalidParamsError(
                "task", f"the tokenizer or its chat template fails on the prompt: {error}"
            ) from error

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
        # Like theirs, without a time zone.
        moment = datetime.combine(day, time())

        def strftime_now(directives: str) -> str:
            return moment.strftime(_SECONDS.sub(partial(_without_clock, day), directives))

        return str(
            compile_template(template).render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._tokenizer.special_tokens_map,
                strftime_now=strftime_now,
            )
        )

    def _check_template(self) -> None:
        reason = None
        try:
            rendered = {self._render(_SENTINEL, _ANY_DATE) for _ in range(_NUM_RENDERINGS)}
        except Exception as error:
            reason = f"it raises {type(error).__name__}: {error}"
        else:
            reason = _defect(rendered)
        if reason is not None:
            raise UnsupportedModelError(
                f"the model's chat template cannot be used: {' '.join(reason.split())}; "
                "--ignore-chat-template serves the model with the bare prompt instead (collect: "
                "--chat-template none or qwen)"
            )


def _defect(rendered: Collection[str]) -> str | None:
    """Return why the texts of the sentinel are no prompts; None when they are."""
    counts = {text.count(_SENTINEL) for text in rendered}
    if counts == {1}:
        return "it makes another text each time" if len(rendered) > 1 else None
    if min(counts) > 1:
        return f"it writes the task {min(counts)} times"
    changed = any("latentwire" in text.lower() for text in rendered)
    return "it changes or cuts the task" if changed else "the task is not in the text that it makes"


def _without_clock(day: date, directive: re.Match[str]) -> str:
    """Replace the one directive that reads this machine's time zone."""
    if directive[1] != "s":
        return directive[0]
    return str(int(datetime.combine(day, time(), UTC).timestamp()))


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
