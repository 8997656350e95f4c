"""Chat templates: turns to one text, through the model's own template or ChatML.

The template is rendered at start: one that raises, or does not carry a task as it is, is refused
before the first request. Each latent is a placeholder in the text, which is cut there after
rendering.
"""

from __future__ import annotations

import inspect
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime, time
from functools import partial
from typing import Any

from transformers.utils import chat_template_utils

from latentwire_service.engine.errors import InvalidParamsError, UnsupportedModelError
from latentwire_service.engine.prompt import ASSISTANT, Conversation, Embeddings, Turn

# Pieces of a prompt in order: texts to tokenize, and latents.
Pieces = list[str | Embeddings]

# A task that shows what a template does to it: letters of both cases, markup, braces, white space
# inside, and more characters than a template would keep that cuts tasks. Many models' templates
# strip white space around a task, which is left to them.
_SENTINEL = (
    "Task 7f3a9C\n\n  <b>&amp; \"x\" 'y'</b>\t{{ a }} {% b %} \\n \u00c4\u6587\U0001f600 "
    + "latentwire " * 2000
    + "end of the task"
)
_ANY_DATE = date(2024, 2, 29)
# A template that draws between two texts is missed once in 2**31 starts.
_NUM_RENDERINGS = 32
# Directives of `strftime`: "%%" is a percent sign, "%s" the seconds since 1970.
_SECONDS = re.compile("%(.)", re.DOTALL)

# The variables that a template gets from here, and parameters of transformers' own method.
_RESERVED = frozenset({"messages", "documents", "tools", "strftime_now", "raise_exception", "self"})


class ChatTemplate:
    """The template of one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.

    Raises:
        UnsupportedModelError: the template cannot carry a task.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        parameters = inspect.signature(tokenizer.apply_chat_template).parameters
        self._reserved = _RESERVED | parameters.keys() | tokenizer.special_tokens_map.keys()
        self._check()

    @property
    def is_dated(self) -> bool:
        """Whether the template writes a date."""
        return "strftime_now" in self._tokenizer.get_chat_template()

    def render(self, conversation: Conversation, day: date) -> Pieces:
        """Return the prompt of a conversation.

        Raises:
            InvalidParamsError: a variable may not be set, or the template loses, repeats or moves
                a latent or the end of the continued turn.
            Exception: whatever the template raises.
        """
        self._check_names(conversation.template_kwargs)
        marks = Marks()
        messages = [
            {"role": turn.role, "content": marks.written(turn)} for turn in conversation.turns
        ]
        if conversation.is_continued:
            # The space shows whether the template trims what ends the turn.
            messages[-1]["content"] += f"{marks.end} "
        text = self._render(
            messages,
            day,
            conversation.template_kwargs,
            adds_generation_prompt=not conversation.is_continued,
        )
        if conversation.is_continued:
            text = marks.before_end(text)
        return marks.cut(text)

    def _check_names(self, template_kwargs: Mapping[str, object]) -> None:
        for name in template_kwargs:
            if name in self._reserved:
                raise InvalidParamsError("chat_template_kwargs", f"{name} cannot be set")

    def _render(
        self,
        messages: list[dict[str, str]],
        day: date,
        template_kwargs: Mapping[str, object],
        *,
        adds_generation_prompt: bool,
    ) -> str:
        template = self._tokenizer.get_chat_template()
        if "strftime_now" not in template:
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    add_generation_prompt=adds_generation_prompt,
                    tokenize=False,
                    **template_kwargs,
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
                **template_kwargs,
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=adds_generation_prompt,
                **self._tokenizer.special_tokens_map,
                strftime_now=strftime_now,
            )
        )

    def _check(self) -> None:
        sentinel = Conversation.of_text(_SENTINEL)
        reason = None
        try:
            rendered = {str(*self.render(sentinel, _ANY_DATE)) for _ in range(_NUM_RENDERINGS)}
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


class Marks:
    """Placeholders that stand for latents while a template is rendered.

    They are letters and digits only, so that trimming, escaping or a change of case in a template
    does no harm, and each prompt has others, so that no text of a caller holds one.
    """

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(16)
        self._latents: list[Embeddings] = []

    @property
    def end(self) -> str:
        """Stands for the end of the turn that the model continues."""
        return f"e{self._nonce}e"

    def written(self, turn: Turn) -> str:
        """Return the content of a turn as one text."""
        return "".join(part if isinstance(part, str) else self._mark(part) for part in turn.content)

    def before_end(self, text: str) -> str:
        """Return a rendered text up to the end of the continued turn.

        A template that trims white space would have trimmed it before the mark as well.
        """
        before, found, after = text.partition(self.end)
        if not found or self.end in after:
            raise InvalidParamsError(
                "messages", "the chat template does not let the last message be continued"
            )
        return before if after.startswith(" ") else before.rstrip()

    def cut(self, text: str) -> Pieces:
        """Return the texts around the latents of a rendered text, and the latents."""
        pieces: Pieces = []
        for index, latent in enumerate(self._latents):
            before, found, text = text.partition(self._name(index))
            if not found:
                raise InvalidParamsError(
                    "messages", f"the chat template leaves out latent {index}, or moves it"
                )
            pieces += [before, latent]
        pieces.append(text)
        if any(self._nonce in piece for piece in pieces if isinstance(piece, str)):
            raise InvalidParamsError("messages", "the chat template repeats a latent, or moves it")
        return [piece for piece in pieces if not isinstance(piece, str) or piece]

    def _mark(self, latent: Embeddings) -> str:
        self._latents.append(latent)
        return self._name(len(self._latents) - 1)

    def _name(self, index: int) -> str:
        return f"l{self._nonce}x{index}l"


def chatml(conversation: Conversation) -> Pieces:
    """Return the prompt of a conversation in ChatML, the markup of Qwen and others."""
    marks = Marks()
    text = "".join(
        f"<|im_start|>{turn.role}\n{marks.written(turn)}<|im_end|>\n" for turn in conversation.turns
    )
    if conversation.is_continued:
        return marks.cut(text.removesuffix("<|im_end|>\n"))
    return marks.cut(f"{text}<|im_start|>{ASSISTANT}\n")


def bare(turns: Sequence[Turn]) -> Pieces:
    """Return the content of a single turn, without markup.

    Raises:
        InvalidParamsError: there are several turns, or one of the assistant.
    """
    if len(turns) > 1 or turns[0].role != "user":
        raise InvalidParamsError(
            "messages" if turns[0].role != "system" else "system",
            "only a single message of the user can be sent without a chat template; qwen is a "
            "template for every model",
        )
    marks = Marks()
    return marks.cut(marks.written(turns[0]))
