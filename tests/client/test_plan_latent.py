from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest

from latentwire import MissingDependencyError, PlanLatent, ProtocolError
from latentwire.protocol import PlanLatentResponse


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
    assert plan.latent.model_dump() == body["latent"]
    assert plan.usage.model_dump() == body["usage"]
    assert plan.timings.model_dump() == body["timings"]
    assert {f.name for f in dataclasses.fields(plan)} == set(PlanLatentResponse.model_fields)


@pytest.mark.parametrize("latent_steps", [2, 4])
def test_latent_steps_that_differ_from_the_rows_are_refused(wire: Any, latent_steps: int) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "latent_steps": latent_steps}
    with pytest.raises(ProtocolError, match="latent_steps"):
        decode(wire.plan_body(k=3, usage=usage))


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
