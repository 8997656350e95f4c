"""Bridge directories: what is loaded, and what is refused with which words."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire_service.bridges.directory import check_bridge, load_bridge
from latentwire_service.bridges.interlat import InterlatAdapter
from latentwire_service.bridges.manifest import Config, Kind, Target
from latentwire_service.engine.seams.bridge import BridgeError, BridgePrompt
from support.bridge_folders import (
    SENDER_WIDTH,
    edit_manifest,
    manifest,
    published_state,
    random_state,
    receiver,
    save,
)
from support.tiny_shape import HIDDEN_SIZE

KINDS: list[Kind] = ["ridge", "mlp", "interlat"]
Break = Callable[[Path], object]


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def rows(count: int = 6, width: int = SENDER_WIDTH) -> Any:
    return np.random.default_rng(1).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_bridge_loads_with_the_values_it_was_saved_with(kind: Kind, tmp_path: Path) -> None:
    described = manifest(kind)
    bridge = load_bridge(save(tmp_path / "mine", described), receiver())
    assert (bridge.name, bridge.kind, bridge.is_builtin) == ("mine", kind, False)
    assert bridge.source.hidden_size == SENDER_WIDTH
    assert bridge.prompt == BridgePrompt("Repeat: ", ".")
    assert bridge.apply(rows()).shape == (6, HIDDEN_SIZE)
    assert bridge.num_rows(6) == 6
    for name, tensor in bridge.module.state_dict().items():
        torch.testing.assert_close(tensor, random_state(described)[name])


def test_a_stored_dtype_changes_the_values_by_rounding_only(tmp_path: Path) -> None:
    exact = load_bridge(save(tmp_path / "a", manifest("mlp")), receiver())
    half = load_bridge(save(tmp_path / "b", manifest("mlp"), dtype=torch.float16), receiver())
    assert next(half.module.parameters()).dtype == torch.float32
    np.testing.assert_allclose(half.apply(rows()), exact.apply(rows()), atol=0.02)


def test_the_content_hash_follows_the_content_not_the_name(tmp_path: Path) -> None:
    first = load_bridge(save(tmp_path / "a", manifest("ridge")), receiver())
    again = load_bridge(save(tmp_path / "b", manifest("ridge")), receiver())
    other = save(tmp_path / "c", manifest("ridge"))
    tensors = load_file(other / "bridge.safetensors")
    tensors["bias"][0] += 1e-3
    save_file(tensors, other / "bridge.safetensors")
    assert first.content_hash == again.content_hash
    assert first.content_hash != load_bridge(other, receiver()).content_hash


def test_a_window_reads_the_next_row_and_the_mean_after_the_last(tmp_path: Path) -> None:
    bridge = load_bridge(save(tmp_path / "w", manifest("ridge")), receiver())
    state = random_state(manifest("ridge"))
    given, mean = torch.tensor(rows()), state["mean"]
    following = torch.cat([given[1:], mean[None]])
    window = torch.cat([given - mean, following - mean], dim=1)
    expected = (window @ state["weight"] + state["bias"]) * state["factor"]
    np.testing.assert_allclose(bridge.apply(rows()), expected.numpy(), rtol=1e-4, atol=1e-5)
    # A single row has no successor.
    assert bridge.apply(rows(1)).shape == (1, HIDDEN_SIZE)
    assert not bridge.is_row_wise


def test_a_window_of_one_row_is_row_wise(tmp_path: Path) -> None:
    described = manifest("ridge", config=Config(window=1))
    bridge = load_bridge(save(tmp_path / "w", described), receiver())
    assert bridge.is_row_wise
    np.testing.assert_allclose(
        bridge.step(torch.tensor(rows())).numpy(), bridge.apply(rows()), atol=1e-6
    )


def _cut(folder: Path) -> None:
    path = folder / "bridge.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _lie(folder: Path) -> None:
    """A header that states 400 GB of tensor."""
    header = {"weight": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}}
    text = json.dumps(header).encode()
    (folder / "bridge.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def _pipe(folder: Path) -> None:
    """A file whose opening waits for a writer."""
    (folder / "bridge.json").unlink()
    os.mkfifo(folder / "bridge.json")


def _huge_header(folder: Path) -> None:
    (folder / "bridge.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


def _change(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Break:
    def apply(folder: Path) -> None:
        path = folder / "bridge.safetensors"
        tensors = load_file(path)
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed
        save_file(tensors, path)

    return apply


def _add(folder: Path) -> None:
    path = folder / "bridge.safetensors"
    save_file(load_file(path) | {"extra": torch.zeros(1)}, path)


def _json(**changes: Any) -> Break:
    return lambda folder: edit_manifest(folder, **changes)


def _text(text: str) -> Break:
    return lambda folder: (folder / "bridge.json").write_text(text)


SOURCE = {"model": None, "revision": None, "hidden_size": 24, "layer": "last", "normed": True}
BROKEN: dict[str, tuple[Break, str]] = {
    "another version": (_json(version=2), "bridge.json has version 2"),
    "a version that is text": (_json(version="1"), 'version "1"'),
    "another format": (_json(format="safetensors"), "does not say"),
    "no JSON": (_text("{"), "bridge.json is not JSON"),
    "a list": (_text("[]"), "does not say"),
    "deep JSON": (_text("[" * 100_000), "bridge.json is not JSON"),
    "large JSON": (_text(" " * 2_000_000), "larger than 1 MiB"),
    "another kind": (_json(kind="magic"), "kind: must be one of"),
    "no kind": (_json(kind=None), "kind"),
    "a width that is text": (_json(source=SOURCE | {"hidden_size": "24"}), "source.hidden_size"),
    "a width of zero": (_json(source=SOURCE | {"hidden_size": 0}), "at least 1"),
    "a width of a billion": (_json(source=SOURCE | {"hidden_size": 10**9}), "at most"),
    "another width": (_json(source=SOURCE | {"hidden_size": 25}), r"bridge.json states \[50, 48\]"),
    "a name with a slash": (_json(name="../x"), "name"),
    "a built-in name": (_json(name="weights"), "weights, which is taken"),
    "the name of a latent generator": (_json(name="generator"), "generator, which is taken"),
    "a huge hidden layer": (
        _json(config={"window": 2, "intermediate_size": 2**20}),
        "states .1048576",
    ),
    "no hidden layer": (_json(config={"window": 2}), "intermediate_size: required"),
    "a window of zero": (_json(config={"window": 0}), "config.window"),
    "no tensors": (lambda f: (f / "bridge.safetensors").unlink(), "no bridge.safetensors"),
    "a pipe as manifest": (_pipe, "bridge.json is not a file"),
    "no manifest": (lambda f: (f / "bridge.json").unlink(), "no bridge.json"),
    "a missing tensor": (_change("up.weight", lambda _: None), "has no tensor up.weight"),
    "an unknown tensor": (_add, "tensor that its kind does not: extra"),
    "another shape": (
        _change("bias", lambda t: t[:-1].clone()),
        r"tensor bias has shape \[47\]",
    ),
    "NaN": (_change("weight", lambda t: t * float("nan")), "tensor weight holds values"),
    "infinity": (_change("factor", lambda t: t / 0), "tensor factor holds values"),
    "integers": (_change("bias", lambda t: t.to(torch.int32)), "tensor bias is I32"),
    "doubles": (_change("bias", lambda t: t.double()), "tensor bias is F64"),
    "a cut file": (_cut, "bridge.safetensors is damaged"),
    "a lying header": (_lie, "bridge.safetensors is damaged"),
    "a huge header": (_huge_header, "bridge.safetensors is damaged"),
    "an empty file": (
        lambda f: (f / "bridge.safetensors").write_bytes(b""),
        "bridge.safetensors is damaged",
    ),
    "a pickle under the name of the tensors": (
        lambda f: (f / "bridge.safetensors").write_bytes(pickle.dumps(Bomb(f / "ran"))),
        "bridge.safetensors is damaged",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_directory_is_refused_with_its_fault(case: str, tmp_path: Path) -> None:
    breaks, reason = BROKEN[case]
    folder = save(tmp_path / "mine", manifest("mlp"))
    check_bridge(folder)
    breaks(folder)
    with pytest.raises(BridgeError, match=reason) as refused:
        load_bridge(folder, receiver())
    with pytest.raises(BridgeError, match=reason):
        check_bridge(folder)
    assert str(refused.value).startswith("bridge mine: ")
    assert str(tmp_path) not in str(refused.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "name", ["x.pt", "x.PTH", "pytorch_model.bin", "a.pkl", "a.pickle", "a.ckpt", "in/a.npy"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_in_the_directory_is_refused_unread(kind: Kind, name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "mine", manifest(kind))
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Bomb(folder / "ran")))
    with pytest.raises(BridgeError, match=f"holds {Path(name).name}, a format that can run code"):
        check_bridge(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_the_state_of_interlat_is_a_pickle_to_other_kinds(kind: Kind, tmp_path: Path) -> None:
    folder = save(tmp_path / "mine", manifest(kind))
    torch.save(published_state(), folder / "hidden_mha_state.pt")
    with pytest.raises(BridgeError, match="holds hidden_mha_state.pt"):
        check_bridge(folder)


def test_a_bridge_of_another_receiver_is_refused_with_both_widths(tmp_path: Path) -> None:
    described = manifest("ridge", receiver=Target(model="big", hidden_size=64))
    folder = save(tmp_path / "mine", described)
    check_bridge(folder)
    with pytest.raises(BridgeError, match=r"width 64 \(made for big\), and tiny reads width 48"):
        load_bridge(folder, receiver())


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "b", manifest("ridge")) / "bridge.json"
    paths = {tmp_path / "nothing": "there is no such directory", file: "is a file, not a directory"}
    for path, message in paths.items():
        with pytest.raises(BridgeError, match=message):
            check_bridge(path)


@pytest.mark.parametrize("source_width", [HIDDEN_SIZE, SENDER_WIDTH])
@pytest.mark.parametrize("has_manifest", [False, True])
def test_the_published_state_of_interlat_loads(
    source_width: int, has_manifest: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "interlat"
    if has_manifest:
        save(folder, manifest("interlat", source_width))
        (folder / "bridge.safetensors").unlink()
    folder.mkdir(exist_ok=True)
    state = published_state(source_width=source_width)
    torch.save(state, folder / "hidden_mha_state.pt")
    bridge = load_bridge(folder, receiver())
    assert bridge.kind == "interlat"
    given = rows(width=source_width)
    np.testing.assert_allclose(bridge.apply(given), _published(state, given), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def _published(state: dict[str, Any], given: Any) -> Any:
    """The formula as published, written out."""
    x = torch.tensor(given)[None]
    width = HIDDEN_SIZE
    if "input_projector" in state:
        x = torch.nn.functional.linear(x, *state["input_projector"].values())
    attention = torch.nn.MultiheadAttention(width, 8, batch_first=True).eval()
    attention.load_state_dict(state["hidden_mha"])
    norm = torch.nn.functional.layer_norm
    pre, post = state["pre_ln"], state["post_ln"]
    normed = norm(x, (width,), pre["weight"], pre["bias"], 1e-6)
    attended = normed + attention(normed, normed, normed)[0]
    out = norm(attended, (width,), post["weight"], post["bias"], 1e-6)
    part = state["adaptive_proj"]
    residual = out * part["scale"]
    y = torch.nn.functional.linear(residual, part["proj.0.weight"], part["proj.0.bias"])
    y = norm(torch.nn.functional.gelu(y), (width,), part["proj.2.weight"], part["proj.2.bias"])
    y = torch.nn.functional.linear(y, part["proj.3.weight"], part["proj.3.bias"])
    return ((residual + y) * part["output_scale"])[0].numpy()


def _without(part: str, name: str | None = None) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.pop(part) if name is None else state[part].pop(name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without("pre_ln"), "has no pre_ln"),
        (_without("adaptive_proj", "proj.3.weight"), "no tensor adaptive_proj.proj.3.weight"),
        (_without("hidden_mha", "in_proj_weight"), "no tensor hidden_mha.in_proj_weight"),
        (_without("pre_ln", "weight"), "pre_ln.weight"),
        (lambda state: state.update(pre_ln="text"), "has no pre_ln"),
        (lambda state: state["pre_ln"].update(weight="text"), "pre_ln.weight is not a tensor"),
    ],
)
def test_an_incomplete_published_state_is_refused_by_name(
    change: Callable[[dict[str, Any]], object], reason: str, tmp_path: Path
) -> None:
    state = published_state()
    change(state)
    torch.save(state, tmp_path / "hidden_mha_state.pt")
    with pytest.raises(BridgeError, match=reason):
        check_bridge(tmp_path)


def test_code_in_the_published_state_does_not_run(tmp_path: Path) -> None:
    torch.save(
        published_state() | {"bomb": Bomb(tmp_path / "ran")}, tmp_path / "hidden_mha_state.pt"
    )
    with pytest.raises(BridgeError, match="holds more than tensors"):
        check_bridge(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "i", manifest("interlat"))
    edit_manifest(folder, config={"num_heads": 7})
    with pytest.raises(BridgeError, match="num_heads is 7, which does not divide the width 48"):
        check_bridge(folder)


def test_rows_of_one_latent_see_each_other_in_interlats_adapter() -> None:
    adapter = InterlatAdapter(HIDDEN_SIZE, HIDDEN_SIZE).eval()
    first = torch.tensor(rows(width=HIDDEN_SIZE))
    second = first.clone()
    second[-1] += 1
    assert not torch.equal(adapter(first)[0], adapter(second)[0])
