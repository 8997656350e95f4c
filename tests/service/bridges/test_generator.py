"""Interlat's compressed generator: the student is loaded whole, or not at all."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentwire_service.__main__ import main
from latentwire_service.bridges import weight_files
from latentwire_service.bridges.builtin import Receiver
from latentwire_service.bridges.generator import check_generator, load_generator
from latentwire_service.bridges.registry import load_registry
from latentwire_service.engine.seams.bridge import BridgeError
from support.bridge_folders import receiver
from support.live_server import LiveServer
from support.tiny_models import build_model, build_tokenizer, llama_config, qwen2_config
from support.tiny_shape import HIDDEN_SIZE, VOCAB_SIZE

CPU = torch.device("cpu")
State = dict[str, Any]


def student(seed: int = 7, **changes: Any) -> Any:
    return build_model(llama_config(**changes), seed, CPU, torch.float32).requires_grad_(False)


def stored(model: Any, prefix: str = "student_lm.", start: str = "lat_bos") -> State:
    """What the training saves, the teacher included."""
    generator = torch.Generator().manual_seed(1)
    state = {f"{prefix}{name}": value.clone() for name, value in model.state_dict().items()}
    shapes = {
        **{"h2e.0.weight": (HIDDEN_SIZE,), "h2e.0.bias": (HIDDEN_SIZE,)},
        **{"h2e.1.weight": (HIDDEN_SIZE, HIDDEN_SIZE), start: (HIDDEN_SIZE,)},
        **{"teacher.base_model.lm_head.weight": (3, 5), "teacher.pre_ln.weight": (5,)},
    }
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return state | drawn


def save(folder: Path, state: State) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder


def save_bin(folder: Path, state: State) -> Path:
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def save_parts(folder: Path, state: State) -> Path:
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    places = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.parametrize("write", [save, save_bin, save_parts])
@pytest.mark.parametrize(
    ("wrapper", "prefix", "start"),
    [
        ("", "student_lm.", "lat_bos"),
        ("module.", "student_model.", "latent_bos"),
        ("module.module.", "student_lm.", "latent_bos"),
    ],
)
def test_a_generator_gives_the_model_its_student_and_its_steps(
    write: Callable[[Path, State], Path], wrapper: str, prefix: str, start: str, tmp_path: Path
) -> None:
    trained = student()
    state = stored(trained, prefix, start)
    write(tmp_path, {f"{wrapper}{name}": value for name, value in state.items()})
    served = receiver()
    bridge = load_generator(tmp_path, served)
    for name, value in served.model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
    rows = torch.randn(4, HIDDEN_SIZE)
    normed = torch.nn.functional.layer_norm(
        rows, (HIDDEN_SIZE,), state["h2e.0.weight"], state["h2e.0.bias"]
    )
    torch.testing.assert_close(bridge.step(rows), normed @ state["h2e.1.weight"].T)
    assert bridge.start is not None
    assert torch.equal(bridge.start, state[start])


def test_its_steps_are_the_default_and_weights_follow_from_the_student(tmp_path: Path) -> None:
    trained = student()
    registry = load_registry(receiver(), [], save(tmp_path, stored(trained)))
    assert registry.default_step == "generator"
    assert load_registry(receiver(), []).default_step == "weights"
    own = load_registry(Receiver(trained, "tiny"), []).get("weights")
    assert registry.get("weights").content_hash == own.content_hash


def test_the_teacher_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    get = weight_files.WeightFiles.get

    def watched(files: weight_files.WeightFiles, name: str) -> torch.Tensor:
        read.append(name)
        return get(files, name)

    monkeypatch.setattr(weight_files.WeightFiles, "get", watched)
    state = stored(student())
    # Reading it would be refused.
    state["teacher.pre_ln.weight"] *= float("nan")
    load_generator(save(tmp_path, state), receiver())
    assert len(read) == len(state) - 2
    assert not [name for name in read if name.startswith("teacher.")]


def test_tensors_of_torch_files_are_mapped_and_code_in_them_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    load = torch.load

    def watched(path: Path, **given: Any) -> Any:
        options.update(given)
        return load(path, **given)

    monkeypatch.setattr(torch, "load", watched)
    load_generator(save_bin(tmp_path, stored(student())), receiver())
    assert (options["weights_only"], options["mmap"]) == (True, True)


def _drop(name: str) -> Callable[[State], object]:
    return lambda state: state.pop(name)


def _set(name: str, value: torch.Tensor) -> Callable[[State], object]:
    return lambda state: state.update({name: value})


LAYER = "model.layers.1.mlp.up_proj.weight"
FAULTS: dict[str, tuple[Callable[[State], object], str]] = {
    "a weight of the student": (_drop(f"student_lm.{LAYER}"), f"the student has no {LAYER}"),
    "the whole student": (
        lambda state: [state.pop(name) for name in list(state) if name.startswith("student_lm.")],
        "has no student_lm",
    ),
    "the start vector": (_drop("lat_bos"), "has no lat_bos or latent_bos"),
    "the norm's bias": (_drop("h2e.0.bias"), "has no h2e.0.bias"),
    "the map": (_drop("h2e.1.weight"), "has no h2e.1.weight"),
    "an unknown tensor": (_set("other.weight", torch.zeros(1)), "not known: other.weight"),
    "an unknown weight": (
        _set("student_lm.model.layers.9.x", torch.zeros(1)),
        "weights that the model does not: model.layers.9.x",
    ),
    "two start vectors": (_set("latent_bos", torch.zeros(HIDDEN_SIZE)), "lat_bos, latent_bos"),
    "another shape": (
        _set(f"student_lm.{LAYER}", torch.zeros(2, 2)),
        r"up_proj.weight has shape \[2, 2\]",
    ),
    "another start": (_set("lat_bos", torch.zeros(3)), r"lat_bos has shape \[3\]"),
    "a map that is not square": (_set("h2e.1.weight", torch.zeros(2, 3)), "not square"),
    "NaN": (_set("lat_bos", torch.full((HIDDEN_SIZE,), float("nan"))), "not finite"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_generator_that_lacks_something_is_refused_by_name(case: str, tmp_path: Path) -> None:
    # Loaded without this check, a student in part stays as it was, and nothing shows it.
    change, reason = FAULTS[case]
    state = stored(student())
    change(state)
    with pytest.raises(BridgeError, match=reason) as refused:
        load_generator(save(tmp_path, state), receiver())
    assert str(refused.value).startswith(f"generator {tmp_path.name}: ")


def test_a_head_that_is_tied_may_be_stored_once(tmp_path: Path) -> None:
    def tied(seed: int) -> Any:
        return build_model(qwen2_config(), seed, CPU, torch.float32).requires_grad_(False)

    trained, served = tied(7), Receiver(tied(0), "tiny")
    state = stored(trained)
    del state["student_lm.lm_head.weight"]
    load_generator(save(tmp_path, state), served)
    assert torch.equal(served.model.lm_head.weight, trained.lm_head.weight)


def test_a_student_with_added_tokens_is_loaded_whole(tmp_path: Path) -> None:
    trained = student(vocab_size=VOCAB_SIZE + 3)
    served = receiver()
    load_generator(save(tmp_path, stored(trained)), served)
    assert served.model.get_input_embeddings().weight.shape[0] == VOCAB_SIZE + 3
    ids = torch.tensor([[5, 6, VOCAB_SIZE + 2]])
    torch.testing.assert_close(served.model(ids).logits, trained(ids).logits)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"{}"),
        ("pytorch_model.bin", b"junk"),
        ("model.safetensors.index.json", b"[]"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../secret"}}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}'),
        ("nothing", b""),
    ],
)
def test_a_damaged_directory_ends_the_command(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BridgeError):
        check_generator(tmp_path)
    assert main(["--model", str(tmp_path / "none"), "--latent-generator", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("latentwire serve: --latent-generator: generator ")


@torch.no_grad()
def reference(model: Any, state: State, prompt: list[int], steps: int) -> torch.Tensor:
    """Rows of latent steps as published: each is one pass over the sequence, begun by a vector."""
    embedded = model.get_input_embeddings()(torch.tensor(prompt))
    rows, following = [], state["lat_bos"]
    for _ in range(steps):
        embedded = torch.cat([embedded, following[None]])
        output = model(inputs_embeds=embedded[None], output_hidden_states=True)
        rows.append(output.hidden_states[-1][0, -1])
        normed = torch.nn.functional.layer_norm(
            rows[-1], (HIDDEN_SIZE,), state["h2e.0.weight"], state["h2e.0.bias"]
        )
        following = normed @ state["h2e.1.weight"].T
    return torch.stack(rows)


def test_the_service_makes_the_latents_of_the_generator(
    tmp_path: Path, start: Callable[..., LiveServer]
) -> None:
    trained = student()
    state = stored(trained)
    live = start(latent_generator=save(tmp_path, state), device="cpu").wait_ready()
    body = {"task": "wash", "prompt_template": "{task}", "latent_steps": 5, "max_new_tokens": 0}
    answer = httpx.post(f"{live.url}/plan_latent", json=body).json()
    made = np.frombuffer(base64.b64decode(answer["hidden_state"]["data"]), np.float32)
    expected = reference(trained, state, build_tokenizer().encode("wash"), 5).numpy()
    np.testing.assert_allclose(made.reshape(5, HIDDEN_SIZE), expected, atol=1e-4)
