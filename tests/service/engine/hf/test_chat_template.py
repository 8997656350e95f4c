"""Conversations through chat templates: texts as Hugging Face renders them, latents in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest

from latentwire_service.engine.errors import InvalidParamsError
from latentwire_service.engine.hf.prompt_encoder import PromptEncoder
from latentwire_service.engine.prompt import Conversation, Embeddings, Prompt, Turn
from support.tiny_models import build_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKING = CHATML + "{% if enable_thinking %}<think>{% endif %}"
DATED = "{{ strftime_now('%Y') }}" + CHATML
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}"
)
HISTORY = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi!"), ("user", "And now?")]


def with_template(template: str) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def talk(*turns: tuple[str, str | Sequence[str | Embeddings]], **options: Any) -> Conversation:
    made = [
        Turn(role, [content] if isinstance(content, str) else content) for role, content in turns
    ]
    return replace(Conversation(made, field="messages"), **options)


def rows(number: int) -> Embeddings:
    return np.full((number, 4), number, np.float32)


@pytest.mark.parametrize("template", [CHATML, TRIMMED, THINKING, DATED])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_messages_become_the_tokens_of_hugging_face(template: str, length: int) -> None:
    tokenizer = with_template(template)
    turns = HISTORY[:length] if length != 1 else HISTORY[1:2]
    if turns[-1][0] == "assistant":
        turns = turns[:-1]
    year = date.today()
    prompt = PromptEncoder(tokenizer, ()).encode(talk(*turns, day=year))
    expected = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    assert list(prompt.token_ids) == expected


@pytest.mark.parametrize("template", [CHATML, TRIMMED, DATED])
@pytest.mark.parametrize(
    "last", ["1. Fill", "same as: Hello", "", "1. ", " \n1.\n\n", "\t", "a b "]
)
def test_a_last_message_of_the_assistant_is_continued(template: str, last: str) -> None:
    tokenizer = with_template(template)
    prompt = PromptEncoder(tokenizer, ()).encode(talk(("user", last or "x"), ("assistant", last)))
    text = tokenizer.decode(list(prompt.token_ids))
    end = f"[assistant]{last.strip()}" if template == TRIMMED else f"assistant\n{last}"
    assert text.endswith(end)
    if last:
        messages = [{"role": "user", "content": last}, {"role": "assistant", "content": last}]
        expected = tokenizer.apply_chat_template(
            messages, continue_final_message=True, tokenize=True, return_dict=False
        )
        assert list(prompt.token_ids) == expected


def test_a_continued_message_may_end_in_a_latent() -> None:
    tokenizer = with_template(CHATML)
    prompt = PromptEncoder(tokenizer, ()).encode(
        talk(("user", "Go"), ("assistant", ["I think ", rows(3)]))
    )
    assert prompt.embeddings[-1].end == len(prompt)


def test_variables_reach_the_template() -> None:
    encoder = PromptEncoder(with_template(THINKING), ())
    thinking = encoder.encode(talk(("user", "Go"), template_kwargs={"enable_thinking": True}))
    silent = encoder.encode(talk(("user", "Go"), template_kwargs={"enable_thinking": False}))
    assert silent == encoder.encode(talk(("user", "Go")))
    assert len(thinking) > len(silent)


@pytest.mark.parametrize(
    "name", ["messages", "tokenize", "add_generation_prompt", "tools", "chat_template", "self"]
)
@pytest.mark.parametrize("template", [CHATML, DATED])
def test_variables_of_the_service_cannot_be_set(name: str, template: str) -> None:
    encoder = PromptEncoder(with_template(template), ())
    with pytest.raises(InvalidParamsError, match=f"{name} cannot be set") as caught:
        encoder.encode(talk(("user", "Go"), template_kwargs={name: True}))
    assert caught.value.field == "chat_template_kwargs"


def test_variables_without_a_template_are_refused() -> None:
    encoder = PromptEncoder(build_tokenizer(), ())
    with pytest.raises(InvalidParamsError) as caught:
        encoder.encode(talk(("user", "Go"), template_kwargs={"enable_thinking": True}))
    assert caught.value.field == "chat_template_kwargs"


def test_a_template_that_refuses_is_quoted_in_a_bounded_message() -> None:
    encoder = PromptEncoder(with_template(STRICT), ())
    with pytest.raises(InvalidParamsError, match="roles must alternate") as caught:
        encoder.encode(talk(("user", "Go"), ("user", "x" * 10_000)))
    assert caught.value.field == "messages"
    long = PromptEncoder(
        with_template("{% if messages[1] %}{{ raise_exception('y' * 9000) }}{% endif %}"
                      "{{ messages[0].content }}"), ()
    )  # fmt: skip
    with pytest.raises(InvalidParamsError) as caught:
        long.encode(talk(("user", "Go"), ("user", "Go")))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("template", [CHATML, TRIMMED, THINKING, DATED])
def test_text_around_latents_is_tokenized_piece_by_piece(template: str) -> None:
    tokenizer = with_template(template)
    encoder = PromptEncoder(tokenizer, ())
    prompt = encoder.encode(
        talk(
            ("system", "Be brief."),
            ("user", ["Plan: ", rows(3), " and ", rows(2), rows(1), "\nAct."]),
            day=date(2026, 1, 1),
        )
    )
    marked = encoder.encode(
        talk(
            ("system", "Be brief."),
            ("user", "Plan: @@ and @@@@\nAct."),
            day=date(2026, 1, 1),
        )
    )
    pieces = tokenizer.decode(list(marked.token_ids)).split("@@")
    expected = Prompt.joined(
        piece if isinstance(piece, np.ndarray)
        else tokenizer.encode(piece, add_special_tokens=False)
        for piece in [pieces[0], rows(3), pieces[1], rows(2), rows(1), pieces[3]]
    )  # fmt: skip
    assert replace(prompt, day=None) == expected
    assert [span.rows[0, 0] for span in prompt.embeddings] == [3, 2, 1]


LOSES = {
    "leaves one out": "{{ messages[0].content }}",
    "repeats one": (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if messages[1] %}{{ messages[1].content }}{% endif %}"
    ),
    "moves one": "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", list(LOSES))
def test_a_template_that_harms_latents_is_named(name: str) -> None:
    encoder = PromptEncoder(with_template(LOSES[name]), ())
    with pytest.raises(InvalidParamsError, match="latent") as caught:
        encoder.encode(
            talk(("user", ["a long beginning of a message ", rows(1)]), ("user", [rows(2)]))
        )
    assert caught.value.field == "messages"


@pytest.mark.parametrize("chat_template", ["qwen", "none"])
def test_markup_other_than_the_models_takes_latents_too(chat_template: str) -> None:
    tokenizer = build_tokenizer()
    prompt = PromptEncoder(tokenizer, ()).encode(
        talk(("user", ["A", rows(2), "B"]), chat_template=chat_template)
    )
    before, after = "<|im_start|>user\nA", "B<|im_end|>\n<|im_start|>assistant\n"
    if chat_template == "none":
        before, after = "A", "B"
    encode = tokenizer.encode
    assert prompt == Prompt.joined(
        [
            encode(before, add_special_tokens=False),
            rows(2),
            encode(after, add_special_tokens=False),
        ]
    )


@pytest.mark.parametrize("turns", [HISTORY, HISTORY[:2], [("assistant", "So")]])
def test_several_messages_need_a_template(turns: list[tuple[str, str]]) -> None:
    encoder = PromptEncoder(build_tokenizer(), ())
    with pytest.raises(InvalidParamsError, match="qwen"):
        encoder.encode(talk(*turns))
    assert encoder.encode(talk(*turns, chat_template="qwen"))


def test_chatml_opens_an_assistant_turn_or_continues_one() -> None:
    tokenizer = build_tokenizer()
    encoder = PromptEncoder(tokenizer, ())
    opened = encoder.encode(talk(*HISTORY, chat_template="qwen"))
    assert opened == PromptEncoder(with_template(CHATML), ()).encode(talk(*HISTORY))
    continued = encoder.encode(talk(("user", "Go"), ("assistant", "1."), chat_template="qwen"))
    assert tokenizer.decode(list(continued.token_ids)).endswith("<|im_start|>assistant\n1.")
