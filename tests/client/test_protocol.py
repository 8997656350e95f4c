from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from latentwire.call import PlanOptions
from latentwire.constants import MAX_SEED
from latentwire.protocol import (
    ErrorBody,
    HiddenState,
    PlanLatentBody,
    PlanLatentQuery,
    PlanLatentRequest,
)
from latentwire.validation import describe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "x"),
        ("task", "{task} {0} %s"),
        ("max_new_tokens", 1),
        ("temperature", 0),
        ("temperature", 100),
        ("top_p", 1),
        ("top_p", 1e-9),
        ("top_k", 0),
        ("seed", None),
        ("seed", 0),
        ("seed", MAX_SEED),
        ("stop", []),
        ("stop", ["x" * 256] * 16),
        ("chat_template", "qwen"),
        ("k", None),
        ("k", 0),
    ],
)
def test_values_on_the_limits_are_accepted(field: str, value: Any) -> None:
    query = PlanLatentQuery.model_validate({"task": "t", field: value})
    assert getattr(query, field) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", ""),
        ("task", None),
        ("task", 7),
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.5),
        ("temperature", -0.001),
        ("temperature", 100.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0),
        ("top_p", 1.001),
        ("top_k", -1),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("stop", "text"),
        ("stop", [""]),
        ("stop", ["x" * 257]),
        ("stop", ["x"] * 17),
        ("chat_template", "chatml"),
        ("k", -1),
        ("k", 2.5),
        ("temprature", 1.0),
    ],
)
def test_values_past_the_limits_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        PlanLatentQuery.model_validate({"task": "t", field: value})
    assert {problem["loc"][0] for problem in caught.value.errors()} == {field}


def test_defaults_are_the_contract() -> None:
    assert PlanLatentRequest(task="t").model_dump(exclude={"task"}) == {
        "task_id": None,
        "prompt_template": "Please provide a general plan to solve this task.\nThe task is: {task}",
        "chat_template": "auto",
        "max_new_tokens": 512,
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 0,
        "seed": None,
        "stop": [],
        "stream": False,
        "latent_steps": 0,
        # Absent: the model's own, none, or today.
        **dict.fromkeys(
            [
                "date",
                "stop_token_ids",
                "min_p",
                "repetition_penalty",
                "presence_penalty",
                "frequency_penalty",
                "logit_bias",
                "system",
                "messages",
                "chat_template_kwargs",
                "step_bridge",
                "plan",
            ]
        ),
    }


def test_keywords_of_the_client_are_the_fields_of_the_request() -> None:
    named_apart = {"task", "messages", "task_id", "stream", "k"}
    assert PlanOptions.__annotations__.keys() == PlanLatentBody.model_fields.keys() - named_apart


def test_k_belongs_to_the_query_not_to_the_body() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        PlanLatentRequest.model_validate({"task": "t", "k": 3})


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float64"},
        {"rotation": -1},
        {"byteorder": "big"},
        {"shape": [1]},
        {"shape": [1, 2, 3]},
    ],
)
def test_another_tensor_format_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HiddenState.model_validate({"data": "", "shape": [0, 1]} | change)


def test_unknown_members_of_a_problem_are_kept() -> None:
    body = ErrorBody.model_validate(
        {"title": "t", "status": 500, "code": "internal", "detail": "d", "trace": "abc"}
    )
    assert body.model_extra == {"trace": "abc"}


@pytest.mark.parametrize(
    "values",
    [
        {f"name_{index}": 1 for index in range(33)},
        {"name": "x" * 4097},
        {"x" * 129: 1},
        {"no identifier": 1},
        {"": 1},
        {"name": [1]},
        {"name": {"a": 1}},
        {"name": math.nan},
        [1],
        "[1]",
        "{",
    ],
)
def test_variables_of_a_template_have_limits(values: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        PlanLatentRequest.model_validate({"task": "t", "chat_template_kwargs": values})
    assert {problem["loc"][0] for problem in caught.value.errors()} == {"chat_template_kwargs"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": 1}, "messages.0.role: must be text"),
        ({"role": "x" * 129}, "messages.0.role: must have at most 128 characters"),
        ({"content": {}}, "messages.0.content: must be text or a list of parts"),
        ({"content": ["x"]}, "messages.0.content.0: must have the type text or latent"),
        ({"content": [{"type": "latent"}]}, "messages.0.content.0.hidden_state: required; "),
        ({"content": [{"type": "text", "text": 1}]}, "messages.0.content.0.text: must be text"),
        ({"name": "x"}, "messages.0.name: unknown field"),
        ({"content": "\ud800"}, "messages.0.content: must be Unicode text"),
    ],
)
def test_messages_that_cannot_be_read_are_named(change: dict[str, Any], message: str) -> None:
    sent = {"messages": [{"role": "user", "content": "Go"} | change]}
    with pytest.raises(ValidationError) as caught:
        PlanLatentRequest.model_validate(sent)
    assert describe(caught.value).startswith(message)
