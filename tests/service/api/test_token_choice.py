"""The fields of a request that change which tokens are chosen and where the plan ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from latentwire import Client
from support.live_server import LiveServer
from support.requests import GREEDY, assert_problem, plan_of, post
from support.tiny_shape import VOCAB_SIZE

pytestmark = pytest.mark.backends("local")

FIELDS: dict[str, Any] = {
    "repetition_penalty": 1.6,
    "presence_penalty": 2.0,
    "frequency_penalty": 1.5,
    "logit_bias": {"40": 60.0},
    "stop_token_ids": [40, 41],
    "min_p": 0.9,
}


@pytest.mark.parametrize("name", list(FIELDS))
def test_body_query_and_client_give_the_same_plan(server: LiveServer, name: str) -> None:
    options = {**GREEDY, name: FIELDS[name], "max_new_tokens": 20}
    if name == "min_p":
        options |= {"do_sample": True, "seed": 3, "top_p": 1.0}
    body = plan_of(post(server, options))
    query = dict(options)
    if name == "logit_bias":
        query[name] = json.dumps(FIELDS[name])
    assert plan_of(server.http.get("/plan_latent", params=query)).token_ids == body.token_ids
    if name == "logit_bias":
        options[name] = {int(key): value for key, value in FIELDS[name].items()}
    with Client(server.url) as client:
        assert list(client.plan_latent(**options).token_ids) == body.token_ids


def test_logit_bias_and_stop_token_ids_change_the_plan(server: LiveServer) -> None:
    plan = plan_of(post(server, {**GREEDY, "logit_bias": {"40": 100}}))
    assert set(plan.token_ids) == {40}
    stopped = plan_of(post(server, {**GREEDY, "logit_bias": {"40": 100}, "stop_token_ids": [40]}))
    assert (stopped.token_ids, stopped.plan, stopped.finish_reason) == ([40], "", "stop")


def test_the_text_of_a_special_token_ends_the_plan(server: LiveServer) -> None:
    pad = {"logit_bias": {"0": 100}}
    plan = plan_of(post(server, {**GREEDY, **pad, "stop": ["<pad>"]}))
    assert (plan.token_ids, plan.plan, plan.finish_reason) == ([0], "", "stop")


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("stop_token_ids", [VOCAB_SIZE], "stop_token_ids"),
        ("stop_token_ids", [2**31 - 1], "stop_token_ids"),
        ("stop_token_ids", [-1], "stop_token_ids.0"),
        ("stop_token_ids", [1] * 65, "stop_token_ids"),
        ("logit_bias", {str(VOCAB_SIZE): 1}, "logit_bias"),
        ("logit_bias", {"-1": 1}, None),
        ("logit_bias", {"x": 1}, None),
        ("logit_bias", {"5": 101}, "logit_bias.5"),
        ("logit_bias", [5], "logit_bias"),
        ("logit_bias", "{5", "logit_bias"),
        ("logit_bias", {str(token): 0 for token in range(1025)}, "logit_bias"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("presence_penalty", 2.1, "presence_penalty"),
        ("frequency_penalty", -2.1, "frequency_penalty"),
        ("min_p", 1.5, "min_p"),
        ("min_p", True, "min_p"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(
    server: LiveServer, name: str, value: Any, field: str | None
) -> None:
    answer = post(server, {**GREEDY, name: value})
    if field is None:
        assert answer.status_code == 422
        assert answer.json()["field"].startswith(name)
    else:
        assert_problem(answer, 422, "invalid-request", field)


def test_info_states_the_models_defaults(server: LiveServer) -> None:
    assert server.http.get("/info").json()["generation_defaults"] == {}
