"""The binary formats hold the same bits as the JSON one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from safetensors import safe_open
from safetensors.numpy import load

from latentwire import Client, InvalidArgumentError, PlanLatent, ProtocolError
from latentwire.number_formats import encode_rows
from latentwire.protocol import PlanLatentResponse
from latentwire.safetensors_wire import pack, unpack
from latentwire_batch.dataset.schema import SCHEMA
from latentwire_service.api.wire_formats import (
    ARROW_RESPONSE_KEY,
    WireFormat,
    negotiate,
)
from support.live_server import LiveServer
from support.requests import latent_of
from support.tiny_shape import HIDDEN_SIZE

pytestmark = pytest.mark.backends("fake", "local", "vllm")

BODY = {"task": "Wash", "task_id": "t", "max_new_tokens": 9, "seed": 4, "temperature": 1.5}


def request(server: LiveServer, wire: WireFormat, **params: Any) -> bytes:
    answer = server.http.post(
        "/plan_latent", json=BODY, params=params, headers={"Accept": wire.value}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == wire.value
    return answer.content


def plan_of(server: LiveServer, **params: Any) -> PlanLatent:
    content = request(server, WireFormat.JSON, **params)
    return PlanLatent.from_response(PlanLatentResponse.model_validate_json(content))


OWN = {"id", "timings", "hidden_state"}


@pytest.mark.parametrize("params", [{}, {"k": 0}, {"k": 3}])
def test_arrow_holds_one_row_of_a_dataset(server: LiveServer, params: dict[str, int]) -> None:
    expected = plan_of(server, **params)
    with pa.ipc.open_stream(request(server, WireFormat.ARROW, **params)) as reader:
        (batch,) = reader
        metadata = reader.schema.metadata
    assert batch.schema.remove_metadata() == SCHEMA
    (row,) = batch.to_pylist()
    assert (row["task"], row["task_id"], row["plan"]) == ("Wash", "t", expected.plan)
    rows = np.array(row["hidden_state"], np.float32).reshape(-1, HIDDEN_SIZE)
    np.testing.assert_array_equal(rows, expected.hidden_state)
    rest = PlanLatentResponse.model_validate_json(metadata[ARROW_RESPONSE_KEY])
    assert tuple(rest.token_ids) == expected.token_ids
    assert latent_of(rest).shape == expected.hidden_state.shape


@pytest.mark.parametrize("params", [{}, {"k": 0}, {"k": 3}])
def test_the_safetensors_library_reads_the_answer(
    server: LiveServer, tmp_path: Path, params: dict[str, int]
) -> None:
    expected = plan_of(server, **params)
    content = request(server, WireFormat.SAFETENSORS, **params)
    np.testing.assert_array_equal(load(content)["hidden_state"], expected.hidden_state)
    (tmp_path / "plan").write_bytes(content)
    with safe_open(tmp_path / "plan", framework="numpy") as opened:
        rest = json.loads(opened.metadata()["response"])
    assert (rest["plan"], rest["seed"]) == (expected.plan, 4)


def test_the_client_reads_json_and_safetensors_alike(server: LiveServer) -> None:
    options: dict[str, Any] = {name: value for name, value in BODY.items() if name != "task"}
    with Client(server.url) as json_client, Client(server.url, wire="safetensors") as client:
        expected = json_client.plan_latent("Wash", k=4, **options)
        plan = client.plan_latent("Wash", k=4, **options)
    np.testing.assert_array_equal(plan.hidden_state, expected.hidden_state)
    assert not plan.hidden_state.flags.writeable
    for name in set(PlanLatent.__dataclass_fields__) - OWN:
        assert getattr(plan, name) == getattr(expected, name), name
    with pytest.raises(InvalidArgumentError):
        Client(server.url, wire=cast(Any, "protobuf"))


@pytest.mark.parametrize(
    ("accept", "wire"),
    [
        ("", WireFormat.JSON),
        ("*/*", WireFormat.JSON),
        ("text/html, */*;q=0.1", WireFormat.JSON),
        ("application/x-safetensors", WireFormat.SAFETENSORS),
        ("application/json, application/x-safetensors", WireFormat.JSON),
        ("application/json;q=0.5, APPLICATION/X-SAFETENSORS", WireFormat.SAFETENSORS),
        ("application/vnd.apache.arrow.stream; q=0.9, application/json; q=0.1", WireFormat.ARROW),
        ("application/x-safetensors;q=0, */*", WireFormat.JSON),
        ("application/x-safetensors;q=much", WireFormat.JSON),
        ("application/x-safetensors;q=inf", WireFormat.JSON),
        ("application/x-safetensors;q=nan", WireFormat.JSON),
        (",;,=", WireFormat.JSON),
    ],
)
def test_accept_selects_the_format(accept: str, wire: WireFormat) -> None:
    assert negotiate(accept) is wire


def test_an_error_is_a_problem_for_every_accept_header(server: LiveServer) -> None:
    answer = server.http.post(
        "/plan_latent", json={}, headers={"Accept": "application/x-safetensors"}
    )
    assert answer.headers["content-type"] == "application/problem+json"


def response() -> PlanLatentResponse:
    return PlanLatentResponse.model_validate(
        {
            "id": "plan-1",
            "model": "m",
            "task": "é\u2028",
            "task_id": None,
            "plan": "p",
            "k": None,
            "hidden_state": {"data": "", "shape": [2, 3]},
            "latent": {"model": "m"},
            "token_ids": [1, 2],
            "finish_reason": "stop",
            "seed": 1,
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "latent_rows": 2},
            "timings": {"queue_ms": 0, "prefill_ms": 0, "decode_ms": 0},
        }
    )


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1])
def test_a_truncated_safetensors_answer_is_refused(cut: int) -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = pack(response(), {"hidden_state": encode_rows(matrix, "float32")})
    read, latents = unpack(content)
    assert read == response()
    np.testing.assert_array_equal(latents["hidden_state"], matrix)
    with pytest.raises(ProtocolError):
        unpack(content[:cut])
    with pytest.raises(ProtocolError):
        unpack(content + b"x")


def test_a_tensor_of_another_shape_or_length_is_refused() -> None:
    def packed(shape: tuple[int, int]) -> bytes:
        rows = encode_rows(np.zeros(shape, np.float32), "float32")
        return pack(response(), {"hidden_state": rows})

    with pytest.raises(ProtocolError, match="not those"):
        unpack(packed((3, 2)))
    huge = packed((2, 3))
    with pytest.raises(ProtocolError):
        unpack((2**63).to_bytes(8, "little") + huge[8:])
