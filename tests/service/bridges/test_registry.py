"""Bridges by name: built in, loaded, and their random controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from latentwire_service.bridges.manifest import Config
from latentwire_service.bridges.registry import BridgeRegistry, load_registry
from latentwire_service.engine.seams.bridge import BridgeError, Bridges
from support.bridge_folders import SENDER_WIDTH, edit_manifest, manifest, receiver, save
from support.tiny_shape import HIDDEN_SIZE


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> BridgeRegistry:
    folder = tmp_path_factory.mktemp("bridges")
    row_wise = manifest("ridge", config=Config(window=1))
    return load_registry(
        receiver(), [save(folder / "mine", manifest("mlp")), save(folder / "single", row_wise)]
    )


def test_it_lists_built_in_bridges_first(registry: BridgeRegistry) -> None:
    names = [bridge.name for bridge in registry]
    assert names == ["embeddings", "norm", "weights", "mine", "single"]
    seam: Bridges = registry
    assert seam.get("mine").kind == "mlp"


def test_an_unknown_name_is_refused_with_the_names(registry: BridgeRegistry) -> None:
    for name in ("other", "random:other", "random:", "", "random:random:other"):
        with pytest.raises(BridgeError, match="embeddings, norm, weights, mine, single"):
            registry.get(name)


@pytest.mark.parametrize("name", ["embeddings", "norm", "weights", "mine", "single"])
def test_the_random_control_has_the_norms_of_its_bridge_and_no_meaning(
    registry: BridgeRegistry, name: str
) -> None:
    bridge, control = registry.get(name), registry.get(f"random:{name}")
    width = SENDER_WIDTH if name in ("mine", "single") else HIDDEN_SIZE
    rows = np.random.default_rng(0).normal(size=(200, width)).astype(np.float32)
    made, random = bridge.apply(rows), control.apply(rows)
    np.testing.assert_allclose(
        np.linalg.norm(random, axis=1), np.linalg.norm(made, axis=1), rtol=1e-3
    )
    cosines = (made * random).sum(1) / (made**2).sum(1)
    assert abs(cosines.mean()) < 0.3
    assert registry.get(f"random:{name}") is control
    assert control.content_hash != bridge.content_hash


def test_the_random_control_is_the_same_in_every_process(registry: BridgeRegistry) -> None:
    rows = np.eye(HIDDEN_SIZE, dtype=np.float32)[:3]
    again = load_registry(receiver(), [])
    np.testing.assert_allclose(
        registry.get("random:norm").apply(rows), again.get("random:norm").apply(rows), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["embeddings", "weights", "single", "random:weights"])
def test_a_row_wise_bridge_feeds_latent_steps(registry: BridgeRegistry, name: str) -> None:
    step = registry.step(name)
    assert registry.step(name) is step
    assert registry.step_start(name) is None
    width = SENDER_WIDTH if name == "single" else HIDDEN_SIZE
    rows = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32)
    made = step(torch.tensor(rows))
    np.testing.assert_allclose(made.numpy(), registry.get(name).apply(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mine", "random:mine"])
def test_a_bridge_that_reads_neighbours_feeds_no_latent_steps(
    registry: BridgeRegistry, name: str
) -> None:
    with pytest.raises(BridgeError, match="cannot feed latent steps"):
        registry.step(name)


def test_two_bridges_of_one_name_are_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "a", manifest("ridge"))
    second = save(tmp_path / "b", manifest("ridge"))
    edit_manifest(second, name="a")
    with pytest.raises(BridgeError, match="two bridges have the name a"):
        load_registry(receiver(), [first, second])


def test_a_built_in_bridge_that_the_model_does_not_allow_is_refused_with_the_reason() -> None:
    registry = BridgeRegistry([], {"weights": "the output embeddings are quantised (int8)"})
    with pytest.raises(BridgeError, match=r"no bridge weights: .* quantised \(int8\)"):
        registry.get("weights")
