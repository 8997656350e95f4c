"""Models whose sizes do not fit their tokenizer: each request gets a plan or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from latentwire_service.settings import Settings
from support.backends import BACKENDS, NO_FAULTS
from support.live_server import LiveServer
from support.requests import plan_of, post
from support.tiny_models import build_model, build_tokenizer, llama_config

INNOCENT: dict[str, Any] = {
    "task": "!",
    "prompt_template": "{task}",
    "chat_template": "none",
    "do_sample": False,
    "max_new_tokens": 4,
}
OTHERS: list[dict[str, Any]] = [
    {**INNOCENT, "task": "abcdefgh" * 3},
    {**INNOCENT, "task": "\u00ff~|"},
    {**INNOCENT, "max_new_tokens": 7},
    {**INNOCENT, "max_new_tokens": 60},
    {**INNOCENT, "do_sample": True, "seed": 3, "top_k": 10**6},
    {**INNOCENT, "stop": ["~", "\u00ff"], "stop_token_ids": [0, 1]},
    {**INNOCENT, "stop_token_ids": [19, 20, 319, 320, 5000]},
    {**INNOCENT, "logit_bias": {"19": 5.0, "319": -5.0}},
    {**INNOCENT, "repetition_penalty": 1.3, "stream": True},
    {"task": "a"},
]


def truncating(tokenizer: Any, _: Any) -> None:
    tokenizer.model_max_length = 4
    tokenizer.truncation_side = "left"
    tokenizer.backend_tokenizer.enable_truncation(4)


def padding(tokenizer: Any, _: Any) -> None:
    tokenizer.padding_side = "left"
    tokenizer.backend_tokenizer.enable_padding(length=16)


def eos_out_of_range(_: Any, model: Any) -> None:
    model.generation_config.eos_token_id = [1, 319, 320, 100_000]


def nothing(*_: Any) -> None:
    pass


SHAPES: dict[str, tuple[dict[str, Any], Callable[[Any, Any], None]]] = {
    "8 positions": ({"max_position_embeddings": 8}, nothing),
    "20 positions": ({"max_position_embeddings": 20}, nothing),
    "20 tokens": ({"vocab_size": 20}, nothing),
    "100 tokens": ({"vocab_size": 100}, nothing),
    "1000 tokens": ({"vocab_size": 1000}, nothing),
    "a tokenizer that truncates": ({}, truncating),
    "a tokenizer that pads": ({}, padding),
    "a negative padding token": ({"pad_token_id": -1}, nothing),
    "ends that do not exist": ({}, eos_out_of_range),
}


@pytest.mark.parametrize(("changes", "spoil"), SHAPES.values(), ids=SHAPES)
def test_a_model_of_any_size_answers_each_request(
    changes: dict[str, Any], spoil: Callable[[Any, Any], None], tmp_path: Path
) -> None:
    folder = tmp_path / "hostile"
    tokenizer, model = build_tokenizer(), build_model(llama_config(**changes))
    spoil(tokenizer, model)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    server = LiveServer(Settings(model=str(folder), max_slots=4), BACKENDS["local"], NO_FAULTS)
    try:
        server.wait_ready()
        expected = plan_of(post(server, INNOCENT)).token_ids
        with ThreadPoolExecutor(4) as pool:
            innocent = pool.submit(post, server, INNOCENT)
            answers = list(pool.map(partial(post, server), OTHERS))
            assert plan_of(innocent.result()).token_ids == expected
        assert {answer.status_code for answer in answers} <= {200, 422}
        if answers[0].status_code == 200:
            # The prompt is neither cut nor filled up.
            assert plan_of(answers[0]).usage.prompt_tokens == 24
        assert plan_of(post(server, INNOCENT)).token_ids == expected
        assert server.http.get("/ready").status_code == 200
    finally:
        server.close()
