"""Answers with compressed latents, over a real socket."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load

from latentwire.compressors import named_compressor
from latentwire.number_formats import EncodedRows, decode_rows, stored_width
from latentwire.plan_latent import PlanLatent
from latentwire.protocol import PlanLatentResponse
from latentwire_service.api.wire_formats import ARROW_RESPONSE_KEY, WireFormat
from support.compressing.strangers import install
from support.live_server import LiveServer
from support.requests import assert_problem, plan_of, post
from support.tiny_shape import HIDDEN_SIZE

pytestmark = pytest.mark.backends("fake", "vllm")

BODY: dict[str, Any] = {"task": "Wash", "max_new_tokens": 9, "seed": 4}
NAMES = ["first", "last", "stride", "mean-pool", "svd", "dct", "novel"]


def full_rows(server: LiveServer, **changes: Any) -> Any:
    """The latent of a request without a compressor."""
    return decoded(server, **changes).hidden_state


def decoded(server: LiveServer, **changes: Any) -> PlanLatent:
    return PlanLatent.from_response(plan_of(post(server, BODY | changes)))


def by_hand(name: str, rows: Any, k: int) -> Any:
    """The formulas of `docs/compressors.md`, where they are short."""
    num_rows = len(rows)
    num_kept = min(k, num_rows)
    if name == "first":
        return rows[:num_kept]
    if name == "last":
        return rows[num_rows - num_kept :]
    if name == "stride":
        return rows[np.round(np.linspace(0, num_rows - 1, num_kept)).astype(int)]
    if name == "mean-pool":
        bounds = [i * num_rows // num_kept for i in range(num_kept + 1)]
        return np.array([rows[a:b].mean(axis=0) for a, b in zip(bounds, bounds[1:], strict=False)])
    return named_compressor(name, k).compress(rows)["hidden_state_comp"]


@pytest.mark.parametrize("k", [1, 4, 50])
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_holds_all_rows_and_the_compressed_ones(
    server: LiveServer, name: str, k: int
) -> None:
    rows = full_rows(server)
    plan = decoded(server, compressor=name, k=k)
    np.testing.assert_array_equal(plan.hidden_state, rows)
    assert plan.hidden_state_comp is not None
    np.testing.assert_allclose(plan.hidden_state_comp, by_hand(name, rows, k), atol=1e-6)
    made = named_compressor(name, k)
    assert plan.compressor is not None
    assert plan.compressor.model_dump() == {
        "name": name,
        "kind": name,
        "content_hash": made.content_hash,
        "parameters": {"k": k},
        "output": made.output,
    }
    arrays = made.compress(rows)
    assert plan.hidden_state_comp_arrays.keys() == arrays.keys() - {"hidden_state_comp"}
    for array, values in plan.hidden_state_comp_arrays.items():
        np.testing.assert_array_equal(values, arrays[array])
    assert (plan.k, plan.usage.latent_rows) == (k, 9)


@pytest.mark.backends("fake")
@pytest.mark.parametrize(
    "changes",
    [
        {"latent_steps": 3},
        {"latent_steps": 3, "max_new_tokens": 0},
        {"plan": "Rinse it.", "max_new_tokens": 1},
        {"task": None, "messages": [{"role": "user", "content": "Wash"}]},
    ],
)
def test_every_kind_of_request_has_a_compressor(
    server: LiveServer, changes: dict[str, Any]
) -> None:
    body = {name: value for name, value in (BODY | changes).items() if value is not None}
    rows = plan_rows(post(server, body))
    answer = post(server, body | {"compressor": "mean-pool", "k": 2})
    plan = PlanLatent.from_response(plan_of(answer))
    assert plan.hidden_state_comp is not None
    np.testing.assert_allclose(plan.hidden_state_comp, by_hand("mean-pool", rows, 2), atol=1e-6)


def plan_rows(answer: Any) -> Any:
    return PlanLatent.from_response(plan_of(answer)).hidden_state


def test_the_full_latent_can_be_left_out(server: LiveServer) -> None:
    rows = full_rows(server)
    answer = plan_of(
        post(server, BODY | {"compressor": "first", "k": 2, "return_hidden_state": False})
    )
    assert (answer.hidden_state, answer.usage.latent_rows) == (None, 0)
    plan = PlanLatent.from_response(answer)
    assert plan.hidden_state.shape == (0, 0)
    assert plan.hidden_state_comp is not None
    np.testing.assert_array_equal(plan.hidden_state_comp, rows[:2])


@pytest.mark.parametrize("k", [None, 0, 3])
def test_an_answer_without_latents_makes_no_rows(server: LiveServer, k: int | None) -> None:
    before = server.metric("latentwire_latent_bytes_total")
    answer = plan_of(post(server, BODY | {"return_hidden_state": False, "k": k}))
    assert server.metric("latentwire_latent_bytes_total") == before
    assert (answer.k, answer.usage.latent_rows, answer.hidden_state) == (k, 0, None)
    assert (answer.hidden_state_comp, answer.compressor) == (None, None)
    assert len(answer.token_ids) == 9


def test_the_fields_may_be_in_query_or_body_of_post_and_in_the_query_of_get(
    server: LiveServer,
) -> None:
    fields: dict[str, Any] = {
        "k": 2,
        "compressor": "dct",
        "return_hidden_state": False,
        "dtype": "int8",
    }
    query = {name: str(value).lower() for name, value in fields.items()}
    answers = [
        plan_of(post(server, BODY | fields)),
        plan_of(post(server, BODY, **query)),
        plan_of(post(server, BODY | fields, **query)),
        plan_of(server.http.get("/plan_latent", params=BODY | query)),
    ]
    assert (
        len({answer.hidden_state_comp.data for answer in answers if answer.hidden_state_comp}) == 1
    )
    assert {(answer.k, answer.hidden_state) for answer in answers} == {(2, None)}
    for name, other in {
        "k": "3",
        "compressor": "svd",
        "return_hidden_state": "true",
        "dtype": "int4",
    }.items():
        refused = post(server, BODY | fields, **{name: other})
        problem = assert_problem(refused, 422, "invalid-request", name)
        assert problem.detail == f"{name}: the query and the body give different values"


@pytest.mark.parametrize(
    ("changes", "field", "detail"),
    [
        ({"compressor": "zip", "k": 2}, "compressor", "first, last, stride, mean-pool, svd, dct"),
        ({"compressor": "/etc", "k": 2}, "compressor", "there is no compressor '/etc'"),
        ({"compressor": ".", "k": 2}, "compressor", "there is no compressor '.'"),
        ({"compressor": "full", "k": 2}, "compressor", "there is no compressor 'full'"),
        ({"compressor": "mean-pool:2", "k": 2}, "compressor", "there is no compressor"),
        ({"compressor": "", "k": 2}, "compressor", "must not be empty"),
        ({"compressor": "x" * 129, "k": 2}, "compressor", "at most 128"),
        ({"compressor": 3, "k": 2}, "compressor", "must be"),
        ({"compressor": "mean-pool"}, "k", "is required by compressor mean-pool"),
        ({"compressor": "mean-pool", "k": None}, "k", "is required by compressor mean-pool"),
        ({"compressor": "mean-pool", "k": 0}, "k", "must be from 1"),
        ({"compressor": "mean-pool", "k": 2**20 + 1}, "k", "must be from 1 to 1048576"),
        ({"compressor": "mean-pool", "k": -1}, "k", "at least 0"),
        ({"dtype": "int2"}, "dtype", "must be one of float32, float16, bfloat16, int8, int4"),
        ({"dtype": None}, "dtype", "must be"),
        ({"return_hidden_state": "no"}, "return_hidden_state", "must be"),
        ({"return_hidden_state": None}, "return_hidden_state", "must be"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_refused_by_name_before_anything_is_generated(
    server: LiveServer, changes: dict[str, Any], field: str, detail: str, stream: bool
) -> None:
    server.forget_submitted()
    refused = post(server, BODY | changes | {"stream": stream})
    assert detail in assert_problem(refused, 422, "invalid-request", field).detail
    assert not server.watch.submitted.acquire(blocking=False)


def test_info_lists_the_compressors(server: LiveServer) -> None:
    info = server.http.get("/info").json()
    assert info["compressors"] == NAMES
    described = {each["name"]: each for each in info["compressor_info"]}
    assert list(described) == NAMES
    assert (described["dct"]["output"], described["svd"]["kind"]) == ("coefficients", "svd")
    assert described["first"]["content_hash"] is None


# --- number formats and binary answers

FORMATS = ["float32", "float16", "bfloat16", "int8", "int4"]
# Relative to the longest row: the bounds of `docs/number-formats.md`, rounded up.
TOLERANCE = {"float32": 0.0, "float16": 1e-3, "bfloat16": 8e-3, "int8": 0.02, "int4": 0.35}


def close(actual: Any, expected: Any, dtype: str) -> bool:
    assert actual.shape == expected.shape
    error = np.linalg.norm(actual - expected, axis=-1).max()
    return bool(error <= TOLERANCE[dtype] * np.linalg.norm(expected, axis=-1).max())


@pytest.mark.parametrize("dtype", FORMATS)
def test_all_forms_of_an_answer_hold_the_same_values(server: LiveServer, dtype: str) -> None:
    body = BODY | {"compressor": "novel", "k": 4, "dtype": dtype}
    rows = full_rows(server)
    whole = PlanLatent.from_response(plan_of(post(server, body)))
    assert whole.hidden_state_comp is not None
    assert close(whole.hidden_state, rows, dtype)
    assert close(whole.hidden_state_comp, by_hand("novel", rows, 4), dtype)
    places = named_compressor("novel", 4).compress(rows)["places"]
    np.testing.assert_array_equal(whole.hidden_state_comp_arrays["places"], places)
    for wire, read in {
        WireFormat.SAFETENSORS: from_safetensors,
        WireFormat.ARROW: from_arrow,
    }.items():
        answer = server.http.post("/plan_latent", json=body, headers={"Accept": wire.value})
        found = read(answer.content)
        np.testing.assert_array_equal(found["hidden_state"], whole.hidden_state)
        np.testing.assert_array_equal(found["hidden_state_comp"], whole.hidden_state_comp)
        np.testing.assert_array_equal(found["places"], places)


def from_safetensors(content: bytes) -> dict[str, Any]:
    """Read an answer with the package `safetensors`, and nothing of the client."""
    # Its numpy reader has no bfloat16.
    torch = pytest.importorskip("torch")
    tensors = importlib.import_module("safetensors.torch").load(content)
    length = int.from_bytes(content[:8], "little")
    response = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["response"])
    found = {"places": tensors.pop("hidden_state_comp.places").numpy()}
    for name in ("hidden_state", "hidden_state_comp"):
        sent, values = response[name], tensors.pop(name)
        assert (sent["data"], sent.get("scales")) == ("", None)
        if sent["dtype"] == "bfloat16":
            assert values.dtype == torch.bfloat16
            found[name] = values.float().numpy()
            continue
        scales = tensors.pop(f"{name}.scales").numpy() if "int" in sent["dtype"] else None
        found[name] = decode_rows(
            EncodedRows(
                sent["dtype"], values.numpy(), scales, sent["shape"][1], sent.get("rotation")
            )
        )
    assert not tensors
    return found


def from_arrow(content: bytes) -> dict[str, Any]:
    """Read an answer with pyarrow."""
    with pa.ipc.open_stream(content) as reader:
        (batch,) = reader
        response = json.loads(reader.schema.metadata[ARROW_RESPONSE_KEY])
    (row,) = batch.to_pylist()
    found = {"places": np.array(row.pop("hidden_state_comp__places"), np.float32)}
    types: dict[str, Any] = {"float16": np.float16, "bfloat16": "<u2", "int8": "i1", "int4": "u1"}
    for name in ("hidden_state", "hidden_state_comp"):
        sent = response[name]
        values = np.array(row.pop(name), types.get(sent["dtype"], np.float32))
        assert values.shape[1] == stored_width(sent["dtype"], HIDDEN_SIZE)
        scales = np.array(row.pop(f"{name}_scale"), "<f4") if "int" in sent["dtype"] else None
        found[name] = decode_rows(
            EncodedRows(sent["dtype"], values, scales, HIDDEN_SIZE, sent.get("rotation"))
        )
    assert row.keys() == {"task", "task_id", "plan"}
    return found


@pytest.mark.parametrize("wire", [WireFormat.SAFETENSORS, WireFormat.ARROW])
def test_a_binary_answer_leaves_the_full_latent_out(server: LiveServer, wire: WireFormat) -> None:
    body = BODY | {"return_hidden_state": False}
    for changes, has_rows in (({}, False), ({"compressor": "last", "k": 1}, True)):
        answer = server.http.post(
            "/plan_latent", json=body | changes, headers={"Accept": wire.value}
        )
        if wire is WireFormat.SAFETENSORS:
            assert set(load(answer.content)) == ({"hidden_state_comp"} if has_rows else set())
        else:
            with pa.ipc.open_stream(answer.content) as reader:
                assert ("hidden_state_comp" in reader.schema.names) == has_rows
                assert "hidden_state" not in reader.schema.names


@pytest.mark.backends("fake")
def test_a_value_beyond_float16_is_refused_with_its_row(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(_token_id: int, index: int) -> Any:
        return np.full(HIDDEN_SIZE, 7e4 if index == 2 else 1, np.float32)

    monkeypatch.setattr("support.fake_backend.hidden_row", row)
    live = start().wait_ready()
    for wire in WireFormat:
        answer = live.http.post(
            "/plan_latent", json=BODY | {"dtype": "float16"}, headers={"Accept": wire.value}
        )
        problem = assert_problem(answer, 422, "invalid-request", "dtype")
        assert problem.detail.startswith(
            "dtype: float16 cannot hold hidden_state: row 2 holds 70000"
        )
    compressed = {"dtype": "float16", "compressor": "last", "k": 7, "return_hidden_state": False}
    refused = post(live, BODY | compressed)
    assert (
        "hidden_state_comp: row 0"
        in assert_problem(refused, 422, "invalid-request", "dtype").detail
    )
    for dtype in ("float32", "bfloat16", "int8"):
        assert plan_of(post(live, BODY | {"dtype": dtype}))


def test_an_array_of_any_width_is_quantized(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = np.ones((1, 2**16 + 1), np.float32)
    install(monkeypatch, {"wide": lambda _rows: {"hidden_state_comp": wide}})
    live = start().wait_ready()
    answer = plan_of(post(live, BODY | {"compressor": "wide", "k": 1, "dtype": "int4"}))
    assert answer.hidden_state_comp is not None
    assert answer.hidden_state_comp.rotation is None
    plan = PlanLatent.from_response(answer)
    assert plan.hidden_state_comp is not None
    np.testing.assert_allclose(plan.hidden_state_comp, wide, rtol=1e-6)


def test_parameters_of_a_compressor_never_end_up_among_the_rows(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, {"odd": lambda rows: {"hidden_state_comp": rows[:1], "data": rows[:2]}})
    live = start().wait_ready()
    plan = decoded(live, compressor="odd", k=1)
    assert plan.compressor is not None
    assert plan.compressor.parameters == {"k": 1, "data": "", "nested": {"data": ""}}
    np.testing.assert_array_equal(plan.hidden_state_comp_arrays["data"], plan.hidden_state[:2])


def test_an_old_client_sees_what_it_saw(server: LiveServer) -> None:
    answer = post(server, BODY).json()
    assert list(answer["hidden_state"]) == ["data", "dtype", "byteorder", "shape"]
    assert answer["hidden_state"]["dtype"] == "float32"
    read = PlanLatentResponse.model_validate(answer)
    assert (read.hidden_state_comp, read.hidden_state_comp_arrays, read.compressor) == (
        None,
        {},
        None,
    )
