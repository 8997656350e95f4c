"""Bridges that are made from the model's own weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latentwire_service.bridges import builtin
from latentwire_service.bridges.builtin import Receiver, builtin_bridges, mean_norm
from latentwire_service.bridges.module_bridge import ModuleBridge
from latentwire_service.engine.seams.bridge import BridgeError
from support.bridge_folders import receiver
from support.tiny_models import build_model, qwen2_config
from support.tiny_shape import HIDDEN_SIZE, VOCAB_SIZE

CPU = torch.device("cpu")


def by_name(loaded: Receiver) -> dict[str, ModuleBridge]:
    bridges, refused = builtin_bridges(loaded)
    assert refused == {}
    return {bridge.name: bridge for bridge in bridges}


def rows(count: int, width: int = HIDDEN_SIZE, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def test_embeddings_returns_the_rows_unchanged() -> None:
    given = rows(5)
    np.testing.assert_array_equal(by_name(receiver())["embeddings"].apply(given), given)


@pytest.mark.parametrize("name", ["norm", "weights"])
def test_rows_get_the_mean_norm_of_the_input_embeddings(name: str) -> None:
    # Without it, each latent step is larger than the one before, and the model degenerates.
    loaded = receiver()
    weight = loaded.model.get_input_embeddings().weight
    target = float(weight.norm(dim=1).mean())
    for scale in (1e-9, 1.0, 1e9, 1e30):
        norms = np.linalg.norm(by_name(loaded)[name].apply(rows(7) * np.float32(scale)), axis=1)
        np.testing.assert_allclose(norms, target, rtol=1e-4)


def test_repeated_latent_steps_keep_the_norm() -> None:
    loaded = receiver()
    bridge = by_name(loaded)["weights"]
    step = torch.tensor(rows(1))
    norms = []
    for _ in range(50):
        embedded = bridge.step(step)
        norms.append(float(embedded.norm()))
        output = loaded.model(inputs_embeds=embedded[None], output_hidden_states=True)
        step = output.hidden_states[-1][0].detach()
    assert max(norms) / min(norms) < 1.001


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("chunk", [7, 64, 10_000])
def test_weights_solves_the_published_equation(
    is_tied: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "_CHUNK_TOKENS", chunk)
    model = build_model(qwen2_config(tie_word_embeddings=is_tied), 0, CPU, torch.float32)
    w_in = model.get_input_embeddings().weight.detach().double()
    w_out = model.get_output_embeddings().weight.detach().double()
    left = w_out.T @ w_out + 1e-5 * torch.eye(HIDDEN_SIZE, dtype=torch.float64)
    expected = torch.linalg.solve(left, w_out.T @ w_in)
    torch.testing.assert_close(builtin.alignment(model).double(), expected, rtol=1e-3, atol=1e-4)
    given = torch.tensor(rows(4)).double()
    aligned = given @ expected
    aligned *= w_in.norm(dim=1).mean() / aligned.norm(dim=1, keepdim=True)
    made = by_name(Receiver(model, "m"))["weights"].apply(rows(4))
    np.testing.assert_allclose(made, aligned.numpy(), rtol=1e-3, atol=1e-4)


class _Scaled(nn.Embedding):
    """Some models scale the stored rows in their embedding module."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 3.0


def test_embeddings_are_those_that_the_models_module_makes() -> None:
    loaded = receiver()
    plain = loaded.model.get_input_embeddings().weight.detach()
    module = _Scaled(VOCAB_SIZE, HIDDEN_SIZE)
    module.weight = nn.Parameter(plain)
    loaded.model.set_input_embeddings(module)
    assert mean_norm(loaded.model) == pytest.approx(3 * float(plain.norm(dim=1).mean()))


def test_weights_states_the_model_that_it_fits() -> None:
    source = by_name(Receiver(receiver().model, "m", "r1"))["weights"].source
    assert (source.model, source.revision, source.hidden_size) == ("m", "r1", HIDDEN_SIZE)
    declared = {"model": "other", "layer": "last", "normed": True, "hidden_size": HIDDEN_SIZE}
    assert source.differences(declared) == ["model is other, the bridge was made for m"]
    assert source.differences(declared | {"model": "m", "revision": None}) == []


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.zeros(VOCAB_SIZE, HIDDEN_SIZE, dtype=torch.int8), r"quantised \(int8\)"),
        (torch.zeros(VOCAB_SIZE * HIDDEN_SIZE // 2, dtype=torch.uint8), r"quantised \(uint8\)"),
        (None, "no output embeddings"),
    ],
)
def test_quantised_weights_are_refused_and_the_other_bridges_remain(
    weight: torch.Tensor | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = receiver()
    head = nn.Module()
    if weight is not None:
        head.register_buffer("weight", weight)
    monkeypatch.setattr(loaded.model, "get_output_embeddings", lambda: head)
    bridges, refused = builtin_bridges(loaded)
    assert [bridge.name for bridge in bridges] == ["embeddings", "norm"]
    with pytest.raises(BridgeError, match=reason):
        raise BridgeError(refused["weights"])


def test_a_large_vocabulary_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    whole = torch.Tensor.float

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return whole(tensor)

    monkeypatch.setattr(builtin, "_CHUNK_TOKENS", 32)
    monkeypatch.setattr(torch.Tensor, "float", watched)
    builtin.alignment(receiver().model)
    assert largest == 32 * HIDDEN_SIZE


@pytest.mark.parametrize("shape", [(3, HIDDEN_SIZE + 1), (HIDDEN_SIZE,), (3, 0), (2, 3, 4)])
@pytest.mark.parametrize("name", ["embeddings", "norm", "weights"])
def test_rows_of_another_width_are_refused(name: str, shape: tuple[int, ...]) -> None:
    bridge = by_name(receiver())[name]
    with pytest.raises(BridgeError, match=f"rows of width {HIDDEN_SIZE}"):
        bridge.apply(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("name", ["norm", "weights"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused(name: str, value: float) -> None:
    given = rows(2)
    given[1] = value
    with pytest.raises(BridgeError, match="not finite"):
        by_name(receiver())[name].apply(given)


def test_a_row_of_zeros_stays_finite() -> None:
    zeros = np.zeros((2, HIDDEN_SIZE), dtype=np.float32)
    np.testing.assert_array_equal(by_name(receiver())["weights"].apply(zeros), zeros)
