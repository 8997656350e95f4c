"""Task to prompt to tokens."""

from __future__ import annotations

from typing import Any

import pytest

from latentwire_service.engine.hf.prompt_encoder import PromptEncoder
from latentwire_service.engine.prompt import Conversation, Prompt, fill_template
from support.tiny_models import build_tokenizer


@pytest.mark.parametrize(
    ("template", "task", "prompt"),
    [
        ("Plan: {task}.", "wash", "Plan: wash."),
        ("{task} and {task}", "wash", "wash and wash"),
        ("no placeholder", "wash", "no placeholder"),
        ("{task.__class__} {task}", "wash", "{task.__class__} wash"),
        ("{0} {} {task!r} {{task}}", "wash", "{0} {} {task!r} {wash}"),
        ("Plan: {task}", "put {x} in {0}", "Plan: put {x} in {0}"),
        ("{task}{task}", "{task}", "{task}{task}"),
        ("%s {task} $task", "100%", "%s 100% $task"),
        ("{task}", "\\1 \\g<0>", "\\1 \\g<0>"),
        ("{TASK} {task }", "wash", "{TASK} {task }"),
    ],
)
def test_each_placeholder_is_replaced_literally(template: str, task: str, prompt: str) -> None:
    assert fill_template(template, task) == prompt


@pytest.fixture
def tokenizer() -> Any:
    return build_tokenizer()


def text_of(tokenizer: Any, prompt: str, chat_template: str) -> str:
    return str(
        tokenizer.decode(
            list(
                PromptEncoder(tokenizer, ())
                .encode(Conversation.of_text(prompt, chat_template))
                .token_ids
            )
        )
    )


def test_auto_is_the_bare_prompt_without_a_template_of_the_tokenizer(tokenizer: Any) -> None:
    assert text_of(tokenizer, "Plan: {x} 🫖", "auto") == "Plan: {x} 🫖"


def test_auto_is_the_tokenizers_own_template(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[plan]{% endif %}"
    )
    assert text_of(tokenizer, "{{ 1 + 1 }}", "auto") == "[user]{{ 1 + 1 }}[plan]"
    assert text_of(tokenizer, "Plan", "none") == "Plan"


def test_qwen_is_chatml_with_an_opened_assistant_turn(tokenizer: Any) -> None:
    assert text_of(tokenizer, "a {prompt}", "qwen") == (
        "<|im_start|>user\na {prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("one", "other", "num_shared"),
    [((1, 2, 3), (1, 2, 4), 2), ((1, 2), (1, 2, 4), 2), ((), (1,), 0), ((1,), (2, 1), 0)],
)
def test_shared_positions_are_the_equal_leading_ones(
    one: tuple[int, ...], other: tuple[int, ...], num_shared: int
) -> None:
    assert Prompt(one).num_shared(Prompt(other)) == num_shared
    assert Prompt(other).num_shared(Prompt(one)) == num_shared


def test_a_slice_of_a_prompt_is_a_prompt() -> None:
    part = Prompt((5, 6, 7, 8)).slice(1, 3)
    assert (part, len(part)) == (Prompt((6, 7)), 2)
