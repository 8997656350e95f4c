"""What a request may set, and which of vLLM's parameters it becomes."""

from __future__ import annotations

from typing import Any

import pytest

from latentwire_service.engine.errors import InvalidParamsError, UnsupportedModelError
from latentwire_service.vllm_engine.sampling import VllmSampling
from support.engine.requests import make_spec

EOS = frozenset({9, 2})


def params(defaults: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    given = {"do_sample": True, "temperature": 0.7, "seed": 5} | given
    return VllmSampling(defaults or {}, EOS).params_of(make_spec([1], 8, **given))


def test_parameters_have_the_values_of_the_request() -> None:
    found = params(
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias=((4, 2.0),),
        stop=("x",),
        stop_token_ids=(3, 9),
    )
    assert found == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 5,
        "max_tokens": 8,
        "ignore_eos": True,
        "stop_token_ids": [2, 3, 9],
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {4: 2.0},
    }


@pytest.mark.parametrize("greedy", [{"do_sample": False}, {"temperature": 0.0}])
def test_greedy_requests_filter_nothing(greedy: dict[str, Any]) -> None:
    found = params(top_p=0.5, top_k=3, min_p=0.2, **greedy)
    assert (found["temperature"], found["top_p"], found["top_k"]) == (0.0, 1.0, 0)
    assert "min_p" not in found


def test_the_models_own_settings_hold_where_the_request_sets_none() -> None:
    defaults = {"repetition_penalty": 1.1, "min_p": 0.05, "min_new_tokens": 20}
    found = params(defaults, min_p=0.3)
    assert (found["repetition_penalty"], found["min_p"], found["min_tokens"]) == (1.1, 0.3, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.5),
        ("temperature", 0.005),
        ("presence_penalty", 2.1),
        ("presence_penalty", -3.0),
        ("frequency_penalty", 9.0),
    ],
)
def test_what_vllm_would_do_otherwise_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidParamsError, match="the vLLM engine") as caught:
        params(None, **{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["no_repeat_ngram_size", "typical_p", "suppress_tokens"])
def test_a_model_whose_settings_vllm_does_not_apply_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"sets {name} to 3, .*--engine latentwire"):
        VllmSampling({name: 3}, EOS)
