"""A model whose tokenizer, weights and configuration are hostile: a request harms no other."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentwire_service.engine.errors import UnsupportedModelError
from latentwire_service.engine.hf.loading import weights
from latentwire_service.engine.hf.vocabulary import Vocabulary
from latentwire_service.settings import Settings
from support.backends import BACKENDS, NO_FAULTS
from support.live_server import LiveServer
from support.requests import assert_problem, plan_of, post
from support.tiny_models import VOCAB_SIZE, build_model, build_tokenizer, llama_config

INNOCENT: dict[str, Any] = {
    "task": "abc",
    "prompt_template": "{task}",
    "do_sample": False,
    "max_new_tokens": 8,
}
# The embedding has no row for "[PAD]", and the rows of these two are not numbers, or almost not.
NAN, HUGE = "\u00fe", "\u00ff"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("hostile") / "hostile"
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<far>", "<farther>"])
    assert tokenizer.convert_tokens_to_ids("[PAD]") == VOCAB_SIZE
    tokenizer.chat_template = (
        "{% if '^' in messages[0].content %}{{ raise_exception('no ^') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    tokenizer.save_pretrained(folder)
    model = build_model(llama_config())
    rows = model.get_input_embeddings().weight
    with torch.no_grad():
        for text, value in ((NAN, torch.nan), (HUGE, 3e38)):
            rows[tokenizer.encode(text)[-1]] = value
    model.generation_config.update(
        repetition_penalty=1.2, suppress_tokens=[5], no_repeat_ngram_size=4, stop_strings=["~"]
    )
    model.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        # Files with such values are refused; memory can still go bad once they are loaded.
        patch.setattr(weights, "_check_values", lambda *_: None)
        live = LiveServer(Settings(model=str(folder), max_slots=4), BACKENDS["local"], NO_FAULTS)
        live.wait_ready()
    yield live
    live.close()


def test_a_token_without_a_row_is_refused_with_both_numbers(server: LiveServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        innocent = pool.submit(post, server, {**INNOCENT, "max_new_tokens": 60})
        for text, token_id in (("[PAD]", 320), ("Go <far>", 321), ("<farther>", 322)):
            for chat_template in ("auto", "none", "qwen"):
                body = {**INNOCENT, "task": text, "chat_template": chat_template}
                problem = assert_problem(post(server, body), 422, "invalid-request", "task")
                assert f"token id {token_id}" in problem.detail
                assert f"{VOCAB_SIZE} rows" in problem.detail
        plan_of(innocent.result())


def test_the_sizes_are_compared_at_start(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = build_model(llama_config()), build_tokenizer()
    with caplog.at_level(logging.WARNING):
        assert Vocabulary.of(model, tokenizer).size == VOCAB_SIZE
        assert not caplog.records
        tokenizer.add_tokens(["<far>"])
        assert Vocabulary.of(model, tokenizer).size == VOCAB_SIZE
    assert "up to 320, but the model's embedding has 320 rows" in caplog.text
    model.lm_head = torch.nn.Linear(48, VOCAB_SIZE + 1)
    with pytest.raises(UnsupportedModelError, match="321 logits, but its embedding has 320 rows"):
        Vocabulary.of(model, tokenizer)


texts = st.one_of(
    st.text(max_size=12),
    st.lists(st.sampled_from(["[PAD]", "<far>", "<eos>", NAN, HUGE, "^", "a", "~", " "])).map(
        "".join
    ),
    st.sampled_from(["\ud800", "\x00", "{task}", "a" * 700]),
)
token_ids = st.integers(-2, VOCAB_SIZE + 3) | st.sampled_from([2**31 - 1, 2**63])
requests = st.fixed_dictionaries(
    {"task": texts},
    optional={
        "prompt_template": texts.map(lambda text: text + "{task}") | texts,
        "chat_template": st.sampled_from(["auto", "none", "qwen"]),
        "max_new_tokens": st.sampled_from([1, 2, 9, 500, 511, 10**30, 0]),
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([0, 1e-300, 1e-6, 0.5, 100]),
        "top_p": st.sampled_from([1e-300, 0.1, 0.9, 1]),
        "top_k": st.sampled_from([0, 1, VOCAB_SIZE, 10**18, 10**40]),
        "min_p": st.sampled_from([0, 1e-300, 0.5, 1]),
        "repetition_penalty": st.sampled_from([1e-300, 1e-6, 1, 10]),
        "presence_penalty": st.sampled_from([-2, 0, 2]),
        "frequency_penalty": st.sampled_from([-2, 0, 2]),
        "logit_bias": st.dictionaries(token_ids.map(str), st.sampled_from([-100, 0.5, 100])),
        "seed": st.sampled_from([0, 2**53 - 1, 2**63 - 1, 2**63, -1]),
        "stop": st.lists(texts, max_size=17),
        "stop_token_ids": st.lists(token_ids, max_size=3),
        "date": st.sampled_from(["2031-12-09", "0001-01-01", "9999-12-31", "", "2031-13-01"]),
        "stream": st.booleans(),
    },
)


@pytest.fixture(scope="module")
def expected(server: LiveServer) -> list[int]:
    return plan_of(post(server, INNOCENT)).token_ids


def post_ascii(server: LiveServer, body: dict[str, Any]) -> httpx.Response:
    """Unlike httpx's own encoding, this one has room for half a surrogate pair."""
    headers = {"content-type": "application/json"}
    return server.http.post("/plan_latent", content=json.dumps(body), headers=headers)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(requests, min_size=1, max_size=4))
def test_no_request_changes_the_plan_of_another(
    server: LiveServer, expected: list[int], bodies: list[dict[str, Any]]
) -> None:
    with ThreadPoolExecutor(5) as pool:
        innocent = pool.submit(post, server, INNOCENT)
        answers = list(pool.map(partial(post_ascii, server), bodies))
        assert plan_of(innocent.result()).token_ids == expected
    for answer in answers:
        if answer.status_code == 500:
            assert answer.json()["code"] == "latent-invalid"
        else:
            assert answer.status_code in (200, 422), answer.text
    assert server.http.get("/ready").status_code == 200
