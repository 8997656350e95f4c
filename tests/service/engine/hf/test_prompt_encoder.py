"""Chat templates that work or are refused at start, special tokens at the ends, and the date."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from tokenizers import processors

from latentwire_service.engine.errors import InvalidParamsError, UnsupportedModelError
from latentwire_service.engine.hf.prompt_encoder import PromptEncoder
from latentwire_service.engine.prompt import Conversation
from support.tiny_models import EOS, build_tokenizer

BOS = 5
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[plan]"
DATED = "[{{ strftime_now('%d %b %Y %H:%M%z %s%%s') }}]{{ messages[0].content }}"


def with_template(template: str) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def text_of(tokenizer: Any, text: str, chat_template: str = "auto", day: date | None = None) -> str:
    conversation = replace(Conversation.of_text(text, chat_template), day=day)
    prompt = PromptEncoder(tokenizer, ()).encode(conversation)
    return str(tokenizer.decode(list(prompt.token_ids)))


BROKEN = {
    "raises by itself": ("{{ raise_exception('only tools') }}", "raises TemplateError: only tools"),
    "no valid Jinja": ("{% for m in messages %}", "raises TemplateSyntaxError"),
    "unknown function": ("{{ today() }}{{ messages[0].content }}", "raises UndefinedError"),
    "needs a system turn": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}",
        "system first",
    ),
    "reads parts of the content": ("{{ messages[0].content[0].text }}", "task is not in the text"),
    "writes a constant": ("[user][plan]", "the task is not in the text"),
    "writes nothing": ("{% if false %}{{ messages[0].content }}{% endif %}", "the task is not"),
    "writes upper case": ("{{ messages[0].content | upper }}", "it changes or cuts the task"),
    "writes lower case": ("{{ messages[0].content | lower }}", "it changes or cuts the task"),
    "escapes": ("{{ messages[0].content | e }}", "it changes or cuts the task"),
    "writes JSON": ("{{ messages[0].content | tojson }}", "it changes or cuts the task"),
    "joins lines": (
        "{{ messages[0].content | replace('\n', ' ') }}",
        "it changes or cuts the task",
    ),
    "joins white space": (
        "{{ messages[0].content.split() | join(' ') }}",
        "it changes or cuts the task",
    ),
    "cuts the text": ("{{ messages[0].content[:10] }}", "the task is not in the text"),
    "cuts long texts": ("{{ messages[0].content[:9000] }}", "it changes or cuts the task"),
    "truncates": ("{{ messages[0].content | truncate(4096) }}", "it changes or cuts the task"),
    "repeats the task": ("{{ messages[0].content * 2 }}", "it writes the task 2 times"),
    "repeats for each turn": (
        "{% for m in messages + messages %}{{ m.content }}{% endfor %}",
        "it writes the task 2 times",
    ),
    "reads another role": (
        "{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}",
        "the task is not in the text",
    ),
    "draws lots": (
        "{{ range(10000) | random }} {{ messages[0].content }}",
        "it makes another text each time",
    ),
    "draws one of two": (
        "{{ ['Hi', 'Hello'] | random }} {{ messages[0].content }}",
        "it makes another text each time",
    ),
    "writes Latin": ("{{ lipsum(1) }} {{ messages[0].content }}", "it makes another text each"),
}


@pytest.mark.parametrize(
    "template",
    [PLAIN, "[INST] {{ messages[0].content | trim }} [/INST]", "{{ messages[0]['content'] }}"],
)
def test_a_template_that_carries_the_task_is_used(template: str) -> None:
    assert "Go <b>\n\n on" in text_of(with_template(template), "Go <b>\n\n on")


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_template_is_refused_at_start(name: str) -> None:
    template, reason = BROKEN[name]
    tokenizer = with_template(template)
    with pytest.raises(UnsupportedModelError) as caught:
        PromptEncoder(tokenizer, ())
    message = str(caught.value)
    assert reason in message
    assert "--ignore-chat-template" in message
    assert "\n" not in message
    encoder = PromptEncoder(tokenizer, (), ignores_template=True)
    assert encoder.encode(Conversation.of_text("Go", "auto")) == encoder.encode(
        Conversation.of_text("Go", "none")
    )


def test_several_templates_without_a_default_are_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = {"tool_use": PLAIN, "rag": PLAIN}
    with pytest.raises(UnsupportedModelError, match="chat template cannot be used"):
        PromptEncoder(tokenizer, ())
    tokenizer.chat_template = {"tool_use": "x", "default": PLAIN}
    assert text_of(tokenizer, "Go") == "[user]Go[plan]"


def test_a_template_that_refuses_one_task_fails_that_request_alone() -> None:
    tokenizer = with_template(
        "{% if 'x' == messages[0].content %}{{ raise_exception('no x') }}{% endif %}" + PLAIN
    )
    encoder = PromptEncoder(tokenizer, ())
    with pytest.raises(InvalidParamsError, match="no x"):
        encoder.encode(Conversation.of_text("x", "auto"))
    assert encoder.encode(Conversation.of_text("y", "auto"))


def adding(template: str) -> Any:
    tokenizer = build_tokenizer()
    # An id of the vocabulary that no text needs.
    begin = tokenizer.convert_ids_to_tokens(300)
    tokenizer.add_special_tokens({"bos_token": begin})
    special = [(begin, 300), ("<eos>", EOS)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template.replace("<bos>", begin), special_tokens=special
    )
    return tokenizer


@pytest.mark.parametrize("chat_template", ["none", "qwen", "auto"])
@pytest.mark.parametrize("added", ["$A <eos>", "<bos> $A <eos>", "<bos> $A <eos> <eos>"])
def test_a_prompt_ends_where_its_text_ends(chat_template: str, added: str) -> None:
    tokenizer = adding(added)
    prompt = PromptEncoder(tokenizer, (EOS,)).encode(Conversation.of_text("Go", chat_template))
    bare = build_tokenizer().encode("Go", add_special_tokens=False)
    assert prompt.token_ids[-1] != EOS
    if chat_template != "qwen":
        assert [n for n in prompt.token_ids if n != 300] == bare
    assert (prompt.token_ids[0] == 300) == added.startswith("<bos>")


def test_an_end_token_that_the_caller_wrote_stays() -> None:
    encoder = PromptEncoder(adding("<bos> $A <eos>"), (EOS,))
    assert encoder.encode(Conversation.of_text("Go<eos>", "none")).token_ids[-2:].count(EOS) == 1
    assert encoder.encode(Conversation.of_text("Go<eos><eos>", "none")).token_ids[-2:] == (EOS, EOS)


@pytest.mark.parametrize(
    ("text", "added", "num_begins"),
    [
        ("Go", "<bos> $A", 1),
        ("BEGo", "<bos> $A", 1),
        ("BEBEGo", "<bos> $A", 2),
        ("Go", "<bos> <bos> $A", 1),
        ("BEGo", "$A", 1),
    ],
)
def test_the_beginning_token_is_not_doubled(text: str, added: str, num_begins: int) -> None:
    tokenizer = adding(added)
    prompt = PromptEncoder(tokenizer, ()).encode(
        Conversation.of_text(text.replace("BE", tokenizer.bos_token), "none")
    )
    assert prompt.token_ids[: num_begins + 1].count(300) == num_begins


def test_a_separator_that_the_tokenizer_adds_is_left_out() -> None:
    tokenizer = build_tokenizer()
    separator = tokenizer.convert_ids_to_tokens(301)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {separator}", special_tokens=[(separator, 301)]
    )
    bare = build_tokenizer().encode("Go", add_special_tokens=False)
    encoder = PromptEncoder(tokenizer, (EOS,))
    assert list(encoder.encode(Conversation.of_text("Go", "none")).token_ids) == bare
    assert list(
        encoder.encode(Conversation.of_text(f"Go{separator}", "none")).token_ids
    ) == tokenizer.encode(f"Go{separator}", add_special_tokens=False)


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12", "UTC"])
def test_a_dated_template_writes_the_given_date_in_every_time_zone(
    monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        text = text_of(with_template(DATED), "Go", day=date(2031, 12, 9))
        today = text_of(with_template(DATED), "Go")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert text == "[09 Dec 2031 00:00 1954540800%s]Go"
    assert datetime.now(UTC).strftime("[%d %b %Y 00:00 ") in today


def test_a_prompt_states_the_date_that_is_in_it() -> None:
    day = date(2031, 12, 9)
    dated = PromptEncoder(with_template(DATED), ())
    assert dated.encode(replace(Conversation.of_text("Go"), day=day)).day == day
    assert dated.encode(Conversation.of_text("Go", "auto")).day is not None
    for chat_template in ("none", "qwen"):
        assert dated.encode(Conversation.of_text("Go", chat_template)).day is None
    for encoder in (
        PromptEncoder(with_template(PLAIN), ()),
        PromptEncoder(build_tokenizer(), ()),
        PromptEncoder(with_template(DATED), (), ignores_template=True),
    ):
        assert encoder.encode(replace(Conversation.of_text("Go"), day=day)).day is None


def test_a_dated_template_is_rendered_as_transformers_renders_it() -> None:
    dated = "{{ eos_token }}{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}"
    tokenizer = with_template(dated + PLAIN)
    today = datetime.now(UTC).date()
    chat = [{"role": "user", "content": "Go <b>"}]
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text_of(tokenizer, "Go <b>", day=today) == expected


class Failing:
    """A tokenizer that fails as real ones do."""

    chat_template = None
    eos_token_id = bos_token_id = None

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def encode(self, _text: str, **_options: bool) -> list[int]:
        raise self._error


class Panic(BaseException):
    """What a panic in Rust becomes."""


@pytest.mark.parametrize("error", [Panic("unwrap"), OverflowError("too large"), KeyError("x")])
def test_a_tokenizer_that_fails_on_a_text_refuses_the_request(error: BaseException) -> None:
    with pytest.raises(InvalidParamsError, match="fails on the text"):
        PromptEncoder(Failing(error), ()).encode(Conversation.of_text("Go", "none"))
