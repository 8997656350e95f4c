"""Streams and both clients with compressors and number formats, over a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import numpy as np
import pytest

from latentwire import (
    AsyncClient,
    Client,
    InvalidArgumentError,
    InvalidRequestError,
    PlanLatent,
)
from latentwire.call import Wire
from latentwire.compressors import named_compressor
from latentwire.number_formats import NUMBER_FORMATS, NumberFormat
from latentwire.plan_latent import NO_ROWS
from latentwire.protocol import PlanLatentRequest
from latentwire.sse import EventDecoder
from latentwire_service.api.event_stream import LatentEvents
from latentwire_service.api.rendering import AnswerContext, render_steps
from latentwire_service.engine.backend import Step
from latentwire_service.engine.errors import InvalidParamsError
from support.live_server import LiveServer
from support.requests import post
from support.tiny_shape import HIDDEN_SIZE

pytestmark = pytest.mark.backends("fake", "local", "vllm")

OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "seed": 4}
COMPRESSED: dict[str, Any] = {**OPTIONS, "k": 3, "compressor": "mean-pool"}
WIRES: tuple[Wire, ...] = ("json", "safetensors")


def events_of(live: LiveServer, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = post(live, {"task": "Wash", **OPTIONS, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    return [(each.name, json.loads(each.data)) for each in EventDecoder().feed(answer.content)]


def assert_same(first: PlanLatent, second: PlanLatent) -> None:
    """Two answers to one request are the same, their latents up to the order of a batch."""
    assert (first.token_ids, first.plan, first.k) == (second.token_ids, second.plan, second.k)
    assert (first.compressor, first.usage) == (second.compressor, second.usage)
    assert first.hidden_state.shape == second.hidden_state.shape
    np.testing.assert_allclose(first.hidden_state, second.hidden_state, atol=1e-4)
    assert (first.hidden_state_comp is None) == (second.hidden_state_comp is None)
    if first.hidden_state_comp is not None and second.hidden_state_comp is not None:
        np.testing.assert_allclose(first.hidden_state_comp, second.hidden_state_comp, atol=1e-4)
    assert first.hidden_state_comp_arrays.keys() == second.hidden_state_comp_arrays.keys()


REQUESTS: list[dict[str, Any]] = [
    {},
    {"compressor": "novel", "k": 3},
    {"compressor": "novel", "k": 3, "return_hidden_state": False},
    {"return_hidden_state": False},
    {"return_hidden_state": False, "k": 2},
]


@pytest.mark.parametrize("options", REQUESTS)
def test_all_ways_to_an_answer_agree(server: LiveServer, options: dict[str, Any]) -> None:
    assert_all_ways_agree(server, options)


@pytest.mark.backends("fake", "local")
def test_all_ways_to_an_answer_with_latent_steps_agree(server: LiveServer) -> None:
    assert_all_ways_agree(server, {"compressor": "mean-pool", "k": 50, "latent_steps": 2})


def assert_all_ways_agree(server: LiveServer, options: dict[str, Any]) -> None:
    async def by_asyncio(wire: Wire) -> list[PlanLatent]:
        async with AsyncClient(server.url, wire=wire) as client:
            async with client.stream_plan_latent("Wash", **OPTIONS, **options) as stream:
                async for _ in stream:
                    pass
            return [await client.plan_latent("Wash", **OPTIONS, **options), stream.plan]

    plans = []
    for wire in WIRES:
        with Client(server.url, wire=wire) as client:
            plans.append(client.plan_latent("Wash", **OPTIONS, **options))
            with client.stream_plan_latent("Wash", **OPTIONS, **options) as stream:
                steps = list(stream)
            plans.append(stream.plan)
        plans += asyncio.run(by_asyncio(wire))
    for plan in plans[1:]:
        assert_same(plans[0], plan)
    has_rows = options.get("return_hidden_state", True)
    assert all((step.hidden_row is not None) == has_rows for step in steps)
    assert plans[0].has_hidden_state == has_rows
    if not has_rows:
        assert plans[0].hidden_state is NO_ROWS


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_the_clients_give_float32_back(server: LiveServer, dtype: NumberFormat) -> None:
    with Client(server.url) as client:
        exact = client.plan_latent("Wash", **COMPRESSED)
        plan = client.plan_latent("Wash", **COMPRESSED, dtype=dtype)
        with client.stream_plan_latent("Wash", **COMPRESSED, dtype=dtype) as stream:
            steps = list(stream)
    with Client(server.url, wire="safetensors") as client:
        packed = client.plan_latent("Wash", **COMPRESSED, dtype=dtype)
    limit = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3, "int8": 0.02, "int4": 0.35}[dtype]
    assert exact.hidden_state_comp is not None
    for made in (plan, packed, stream.plan):
        assert made.hidden_state_comp is not None
        for actual, expected in (
            (made.hidden_state, exact.hidden_state),
            (made.hidden_state_comp, exact.hidden_state_comp),
        ):
            assert actual.dtype == np.float32
            assert not actual.flags.writeable
            error = np.linalg.norm(actual - expected, axis=1)
            assert np.all(error <= limit * np.linalg.norm(expected, axis=1))
    for step in steps:
        assert step.hidden_row is not None
        assert not step.hidden_row.flags.writeable
        np.testing.assert_array_equal(step.hidden_row, stream.plan.hidden_state[step.index])


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_events_hold_rows_in_the_number_format(server: LiveServer, dtype: str) -> None:
    *steps, (name, done) = events_of(server, compressor="novel", k=2, dtype=dtype)
    rows = [data["row"] for _, data in steps]
    assert len(rows) == 9
    if dtype == "float32":
        assert all(isinstance(row, str) for row in rows)
    else:
        assert all((row["dtype"], row["shape"]) == (dtype, [1, HIDDEN_SIZE]) for row in rows)
    assert name == "done"
    assert done["shape"] == [9, HIDDEN_SIZE]
    assert (done["hidden_state_comp"]["dtype"], done["k"]) == (dtype, 2)
    assert done["hidden_state_comp"]["shape"] == [2, HIDDEN_SIZE]
    assert done["hidden_state_comp_arrays"]["places"]["dtype"] == "float32"
    assert done["compressor"]["name"] == "novel"


def test_a_stream_without_the_full_latent_has_no_rows(server: LiveServer) -> None:
    options = {"compressor": "dct", "k": 2, "return_hidden_state": False}
    *steps, (_, done) = events_of(server, **options)
    assert [data["row"] for _, data in steps] == [None] * 9
    assert (done["shape"], done["usage"]["latent_rows"]) == ([0, HIDDEN_SIZE], 0)


def test_a_value_beyond_the_format_ends_the_stream_with_the_field(
    start: Any, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    if backend != "fake":
        pytest.skip("its rows are not the test's to choose")

    def row(_token_id: int, index: int) -> Any:
        return np.full(HIDDEN_SIZE, 7e4 if index == 2 else 1, np.float32)

    monkeypatch.setattr("support.fake_backend.hidden_row", row)
    live = start().wait_ready()
    requests: list[dict[str, Any]] = [
        {"dtype": "float16"},
        {"dtype": "float16", "compressor": "last", "k": 7, "return_hidden_state": False},
    ]
    for options in requests:
        *_, (name, error) = events_of(live, **options)
        assert (name, error["code"], error["field"]) == ("error", "invalid-request", "dtype")
        place = "hidden_state_comp: row 0" if "compressor" in options else "hidden_state: row 2"
        assert f"float16 cannot hold {place} holds 70000" in error["detail"]
        with Client(live.url) as client, pytest.raises(InvalidRequestError, match="row"):
            list(client.stream_plan_latent("Wash", **OPTIONS, **options))


def test_an_error_names_the_row_of_the_latent_however_its_steps_are_sent() -> None:
    context = AnswerContext(PlanLatentRequest(task="t"), None, "m", None, "local", dtype="float16")
    rows = np.ones((2, 3), np.float32)
    rows[1, 2] = 1e6
    steps = [Step(7, 1, "a", rows[0]), Step(8, 1, "b", rows[1])]
    with pytest.raises(InvalidParamsError, match="hidden_state: row 8 holds 1e"):
        render_steps(steps, context)


@pytest.mark.parametrize("name", ["steps", "done"])
def test_events_that_take_long_are_made_off_the_event_loop(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    threads = []
    make = getattr(LatentEvents, name)

    def noted(self: LatentEvents, item: Any) -> bytes:
        threads.append(threading.get_ident())
        made: bytes = make(self, item)
        return made

    monkeypatch.setattr(LatentEvents, name, noted)
    assert events_of(server, compressor="first", k=2, dtype="int8")
    assert threads
    assert server.thread.ident not in threads


def test_a_refused_stream_has_a_status(server: LiveServer) -> None:
    with Client(server.url) as client, pytest.raises(InvalidRequestError, match="compressor"):
        list(client.stream_plan_latent("Wash", **OPTIONS, compressor="zip", k=1))


@pytest.mark.backends("fake", "local")
def test_compressed_rows_become_a_part_of_a_request(server: LiveServer) -> None:
    with Client(server.url) as client:
        plan = client.plan_latent("Wash", **COMPRESSED, return_hidden_state=False)
        part = plan.as_part("norm", "float16", compressed=True)
        assert part["hidden_state"]["shape"] == [3, HIDDEN_SIZE]
        message = {"role": "user", "content": [part]}
        assert client.plan_latent(messages=[message], **OPTIONS).plan
        refused: list[tuple[dict[str, Any], str]] = [
            ({}, "no compressor"),
            ({"compressor": "dct", "k": 2}, "dct"),
        ]
        for options, reason in refused:
            other = client.plan_latent("Wash", **OPTIONS, **options)
            with pytest.raises(InvalidArgumentError, match=reason):
                other.as_part(compressed=True)


def test_what_decompress_needs_is_in_the_answer(server: LiveServer) -> None:
    for name in ("dct", "novel", "mean-pool"):
        with Client(server.url, wire="safetensors") as client:
            plan = client.plan_latent("Wash", **OPTIONS, k=50, compressor=name)
        assert plan.hidden_state_comp is not None
        arrays = {"hidden_state_comp": plan.hidden_state_comp, **plan.hidden_state_comp_arrays}
        rows = named_compressor(name, 50).decompress(arrays, len(plan.hidden_state))
        np.testing.assert_allclose(rows, plan.hidden_state, atol=1e-5)
