from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import numpy as np
import pytest

from latentwire import MissingDependencyError, PlanLatent, ProtocolError
from latentwire.call import Wire, plan_latent_call
from latentwire.conversation import LatentPart, Message
from latentwire.latent import HiddenState
from latentwire.number_formats import NUMBER_FORMATS, NumberFormat
from latentwire.protocol import PlanLatentResponse
from latentwire.tensors import decode_hidden_state, encode_hidden_state


def decode(body: dict[str, Any]) -> PlanLatent:
    return PlanLatent.from_response(PlanLatentResponse.model_validate(body))


@pytest.mark.parametrize(("k", "num_rows"), [(None, 4), (0, 0), (3, 3), (4, 4), (9, 4)])
def test_rows_are_the_smaller_of_k_and_length(wire: Any, k: int | None, num_rows: int) -> None:
    plan = decode(wire.plan_body(k=k))
    assert plan.hidden_state.shape == (num_rows, 3)
    np.testing.assert_array_equal(plan.hidden_state, wire.hidden_rows(num_rows))


def test_every_field_of_the_response_is_kept(wire: Any) -> None:
    body = wire.plan_body(k=2, task_id="row-7")
    plan = decode(body)
    assert (plan.id, plan.model, plan.task, plan.task_id) == (
        "plan-1",
        "tiny",
        "Clean the kettle",
        "row-7",
    )
    assert (plan.plan, plan.k, plan.finish_reason, plan.seed) == ("1. Fill it.", 2, "stop", 11)
    assert plan.token_ids == (0, 1, 2, 3)
    assert plan.latent.model_dump() == body["latent"] | {"engine": None}
    assert plan.usage.model_dump() == body["usage"] | {"latent_steps": 0}
    assert plan.timings.model_dump() == body["timings"]
    assert {f.name for f in dataclasses.fields(plan)} == set(PlanLatentResponse.model_fields)


@pytest.mark.parametrize("latent_rows", [2, 4])
def test_latent_rows_that_differ_from_the_rows_are_refused(wire: Any, latent_rows: int) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "latent_rows": latent_rows}
    with pytest.raises(ProtocolError, match="latent_rows"):
        decode(wire.plan_body(k=3, usage=usage))


def test_rows_of_latent_steps_count_in_addition_to_tokens(wire: Any) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "latent_rows": 4, "latent_steps": 2}
    with pytest.raises(ProtocolError, match="2 latent steps and 4 completion tokens require 6"):
        decode(wire.plan_body(usage=usage))


def test_the_earlier_name_of_the_number_of_rows_is_read(wire: Any) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "latent_steps": 3}
    plan = decode(wire.plan_body(k=3, usage=usage))
    assert (plan.usage.latent_rows, plan.usage.latent_steps) == (3, 0)


def test_an_answer_becomes_a_part_of_a_message(wire: Any) -> None:
    plan = decode(wire.plan_body(k=3))
    part = plan.as_part(bridge="mine")
    message = Message.model_validate(
        {"role": "user", "content": [{"type": "text", "text": "Read this:"}, part]}
    )
    latent = message.parts[1]
    assert isinstance(latent, LatentPart)
    assert isinstance(latent.hidden_state, HiddenState)
    np.testing.assert_array_equal(decode_hidden_state(latent.hidden_state), plan.hidden_state)
    assert (latent.latent.model, latent.bridge) == (plan.model, "mine")
    assert json.loads(json.dumps(part)) == part


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_a_part_has_its_rows_in_the_dtype(wire: Any, dtype: NumberFormat) -> None:
    plan = decode(wire.plan_body())
    part = plan.as_part(dtype=dtype)
    messages = [{"role": "user", "content": [part]}]
    forms: tuple[Wire, ...] = ("json", "safetensors")
    for wire_form in forms:
        call = plan_latent_call(None, None, None, {}, messages=messages, wire=wire_form)
        if call.content is None:
            assert call.body is not None
            sent = HiddenState.model_validate(
                call.body["messages"][0]["content"][0]["hidden_state"]
            )
            assert sent == HiddenState.model_validate(part["hidden_state"])
        else:
            assert dtype == "float32"
    rows = decode_hidden_state(HiddenState.model_validate(part["hidden_state"]))
    tolerance = {"float32": 0.0, "float16": 1e-3, "bfloat16": 1e-2, "int8": 0.01, "int4": 0.2}
    error = np.linalg.norm(rows - plan.hidden_state) / np.linalg.norm(plan.hidden_state)
    assert error <= tolerance[dtype]


@pytest.mark.parametrize("k", [None, 2, 4])
def test_a_number_of_rows_that_contradicts_k_is_refused(wire: Any, k: int | None) -> None:
    with pytest.raises(ProtocolError, match="3 hidden rows"):
        decode(wire.plan_body(k=3) | {"k": k})


def test_token_ids_that_differ_from_the_count_are_refused(wire: Any) -> None:
    with pytest.raises(ProtocolError, match="3 token_ids for 4"):
        decode(wire.plan_body(token_ids=[1, 2, 3]))


def test_plan_latent_is_frozen(wire: Any) -> None:
    plan: Any = decode(wire.plan_body())
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.plan = "other"


@pytest.mark.parametrize("k", [None, 0])
def test_to_torch_returns_a_copy(wire: Any, k: int | None) -> None:
    torch = pytest.importorskip("torch")
    plan = decode(wire.plan_body(k=k))
    tensor = plan.to_torch()
    assert tensor.dtype == torch.float32
    assert tensor.device.type == "cpu"
    assert tuple(tensor.shape) == plan.hidden_state.shape
    np.testing.assert_array_equal(tensor.numpy(), plan.hidden_state)
    tensor += 1
    np.testing.assert_array_equal(plan.hidden_state, wire.hidden_rows(len(plan.hidden_state)))


def test_to_torch_without_torch_says_how_to_install_it(
    wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = decode(wire.plan_body())
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="pip install torch"):
        plan.to_torch()


COMPRESSOR: dict[str, Any] = {
    "name": "first",
    "kind": "first",
    "content_hash": "ab" * 32,
    "parameters": {"k": 2},
    "output": "rows",
}


def compressed_body(wire: Any, num_rows: int = 2, **changes: Any) -> dict[str, Any]:
    """An answer with all of its 4 rows and 2 compressed ones."""
    body: dict[str, Any] = wire.plan_body(k=None)
    rows = encode_hidden_state(wire.hidden_rows(num_rows)).model_dump()
    return body | {"k": 2, "hidden_state_comp": rows, "compressor": COMPRESSOR} | changes


def test_a_compressed_answer_has_all_rows_and_the_compressed_ones(wire: Any) -> None:
    plan = decode(compressed_body(wire))
    assert len(plan.hidden_state) == 4
    assert plan.hidden_state_comp is not None
    np.testing.assert_array_equal(plan.hidden_state_comp, wire.hidden_rows(2))
    assert not plan.hidden_state_comp.flags.writeable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressor": None}, "require 2"),
        ({"compressor": None, "k": None}, "alone"),
        ({"hidden_state_comp": None}, "alone"),
        ({"k": 1}, "2 compressed rows, but at most 1"),
        ({"hidden_state": None}, "0 hidden rows and latent_rows 4"),
        ({"hidden_state_comp": {"data": "AAAA", "shape": [1, 1]}}, "hidden_state_comp.data holds"),
        (
            {"hidden_state_comp": {"data": "AA==", "dtype": "int8", "shape": [1, 1]}},
            "hidden_state_comp.scales is required",
        ),
    ],
)
def test_a_compressed_answer_that_contradicts_itself_is_refused(
    wire: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        decode(compressed_body(wire, **changes))
