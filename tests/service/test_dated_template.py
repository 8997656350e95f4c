"""A model whose chat template writes a date: every form of an answer states which one it was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from latentwire import Client
from latentwire_service.settings import Settings
from support.live_server import LiveServer
from support.requests import plan_of, post
from support.tiny_models import build_tokenizer, save_model

BODY: dict[str, Any] = {"task": "Go", "do_sample": False, "max_new_tokens": 4}
DAY = "2031-12-09"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = save_model(tmp_path_factory.mktemp("dated") / "dated")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "[{{ strftime_now('%d %b %Y') }}]{{ messages[0].content }}"
    tokenizer.save_pretrained(folder)
    live = LiveServer(Settings(model=str(folder), max_slots=2))
    yield live.wait_ready()
    live.close()


def test_an_answer_states_the_date_in_its_prompt(server: LiveServer) -> None:
    assert plan_of(post(server, {**BODY, "date": DAY})).date == DAY
    before = datetime.now(UTC).date().isoformat()
    drawn = plan_of(post(server, BODY))
    assert drawn.date in (before, datetime.now(UTC).date().isoformat())
    again = plan_of(post(server, {**BODY, "date": drawn.date}))
    assert (again.date, again.token_ids) == (drawn.date, drawn.token_ids)


@pytest.mark.parametrize("chat_template", ["none", "qwen"])
def test_a_date_that_did_not_enter_the_prompt_is_not_stated(
    server: LiveServer, chat_template: str
) -> None:
    body = {**BODY, "date": DAY, "chat_template": chat_template}
    assert plan_of(post(server, body)).date is None


def test_the_client_reads_the_date(server: LiveServer) -> None:
    with Client(server.url) as client:
        assert client.plan_latent(**BODY, date=DAY).date == DAY
        with client.stream_plan_latent(**BODY, date=DAY) as stream:
            for _ in stream:
                pass
        assert stream.plan.date == DAY
