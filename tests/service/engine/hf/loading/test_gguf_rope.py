"""What a GGUF file says besides its weights: rotary frequencies, and tensors without a place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire_service.engine.errors import UnsupportedModelError
from latentwire_service.engine.hf.loader import LoadedModel, load_model
from support.tiny_gguf import write_gguf
from support.tiny_models import build_model, generate, llama_config, qwen2_config

CPU = torch.device("cpu")
PROMPT = list(range(10, 70))
CONFIGS = {"llama": llama_config, "qwen2": qwen2_config}
NUM_FREQUENCIES = 4
BASE = {"rope_theta": 10000.0}
LLAMA3 = {
    **BASE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    **BASE,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    **BASE,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 4.0],
    "long_factor": [1.0, 2.0, 4.0, 16.0],
    "original_max_position_embeddings": 32,
    "attention_factor": 1.2,
}

pytest.importorskip("gguf")


def load(file: Path, cache_dir: Path) -> LoadedModel:
    return load_model(str(file), device=CPU, dtype=torch.float32, cache_dir=cache_dir)


def refusal(file: Path, tmp_path: Path) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        load(file, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "gguf").glob("*")), "nothing wrong is kept"
    assert len(str(caught.value)) < 300
    return str(caught.value)


def model_of(kind: str, rope: dict[str, Any]) -> Any:
    return build_model(CONFIGS[kind](rope_parameters=rope), 0, CPU, torch.float32)


def factors_of(model: Any) -> Any:
    """The factors that llama.cpp's converter writes for Llama 3.1."""
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    plain = 1 / 10000.0 ** (torch.arange(0, head_dim, 2).double() / head_dim)
    return (plain / model.model.rotary_emb.inv_freq.double()).numpy()


def stated(rope: dict[str, Any], model: Any) -> dict[str, Any]:
    """How a file states it: further tensors, further metadata."""
    match rope["rope_type"]:
        case "llama3":
            return {"extra": {"rope_freqs.weight": factors_of(model)}}
        case "longrope":
            return {
                "extra": {
                    "rope_factors_short.weight": rope["short_factor"],
                    "rope_factors_long.weight": rope["long_factor"],
                },
                "metadata": {
                    "rope.scaling.original_context_length": 32,
                    "rope.scaling.attn_factor": 1.2,
                },
            }
        case "yarn":
            return {
                "metadata": {
                    "rope.scaling.type": "yarn",
                    "rope.scaling.factor": 4.0,
                    "rope.scaling.original_context_length": 32,
                }
            }
        case "linear":
            return {"metadata": {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}}
        case "older linear":
            return {"metadata": {"rope.scale_linear": 3.0}}
        case _:
            return {
                "extra": {"rope_freqs.weight": np.ones(NUM_FREQUENCIES)},
                "metadata": {"rope.scaling.type": "none", "rope.dimension_count": 8},
            }


LINEAR = {**BASE, "rope_type": "linear", "factor": 3.0}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    ("rope", "style"),
    [
        (LLAMA3, "llama3"),
        (YARN, "yarn"),
        (LONGROPE, "longrope"),
        (LINEAR, "linear"),
        (LINEAR, "older linear"),
        ({**BASE, "rope_type": "default"}, "default"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rotary_frequencies_of_a_file_are_those_of_its_model(
    kind: str, rope: dict[str, Any], style: str, tmp_path: Path
) -> None:
    """Also when the cache has the conversion."""
    model = model_of(kind, rope)
    write_gguf(tmp_path / "tiny.gguf", model, **stated({**rope, "rope_type": style}, model))
    # Both lengths of longrope have frequencies of their own.
    prompt = PROMPT[:20] if style == "longrope" else PROMPT
    expected = generate(model, prompt, 8)
    for _ in range(2):
        loaded = load(tmp_path / "tiny.gguf", tmp_path / "cache")
        for name, weight in model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], weight), name
        found = generate(loaded.model, prompt, 8)
        assert found.token_ids == expected.token_ids
        np.testing.assert_allclose(found.hidden_state, expected.hidden_state, atol=2e-4)
    if style != "default":
        plain = generate(model_of(kind, {**BASE, "rope_type": "default"}), prompt, 8)
        assert not np.allclose(plain.hidden_state, expected.hidden_state, atol=1e-2)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "factors for another size": ({"extra": {"rope_freqs.weight": [1, 2, 3]}}, "rope_freqs.weight"),
    "a factor of 0": ({"extra": {"rope_freqs.weight": [1, 2, 3, 0]}}, "rope_freqs.weight"),
    "half of the factors": (
        {"extra": {"rope_factors_long.weight": [1, 2, 3, 4]}},
        "rope_factors_long.weight",
    ),
    "factors and a method": (
        {
            "extra": {"rope_freqs.weight": [1, 2, 3, 4]},
            "metadata": {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
        },
        "rope.scaling.factor",
    ),
    "an unknown method": ({"metadata": {"rope.scaling.type": "spiral"}}, "type=spiral"),
    "yarn with more": (
        {"metadata": {"rope.scaling.type": "yarn", "rope.scaling.yarn_beta_fast": 16.0}},
        "yarn_beta_fast=16",
    ),
    "part of a head": ({"metadata": {"rope.dimension_count": 4}}, "rope.dimension_count is 4"),
    "biases that Qwen2 does not have": (
        {"extra": {"blk.1.attn_output.bias": np.ones(48)}},
        "blk.1.attn_output.bias",
    ),
    "norms that Qwen2 does not have": (
        {"extra": {f"blk.{n}.attn_q_norm.weight": np.ones(8) for n in range(3)}},
        "blk.0.attn_q_norm.weight",
    ),
    "a further layer": (
        {"extra": {"blk.3.attn_norm.weight": np.ones(48)}},
        "blk.3.attn_norm.weight",
    ),
    "a scale of a quantization": (
        {"extra": {"blk.0.attn_q.scale": np.ones(1)}},
        "blk.0.attn_q.scale",
    ),
}


@pytest.mark.parametrize(("files", "name"), REFUSED.values(), ids=REFUSED)
def test_what_a_file_says_and_the_model_cannot_do_is_refused_by_name(
    files: dict[str, Any], name: str, tmp_path: Path
) -> None:
    model = build_model(qwen2_config(), 0, CPU, torch.float32)
    write_gguf(tmp_path / "tiny.gguf", model, **files)
    refused = refusal(tmp_path / "tiny.gguf", tmp_path)
    assert refused.startswith("tiny.gguf cannot be converted: ")
    assert name in refused


def test_layers_that_predict_several_tokens_are_left_out(tmp_path: Path) -> None:
    model = build_model(qwen2_config(), 0, CPU, torch.float32)
    write_gguf(
        tmp_path / "tiny.gguf",
        model,
        extra={"blk.3.attn_norm.weight": np.ones(48), "blk.3.nextn.eh_proj.weight": np.ones(48)},
        metadata={"nextn_predict_layers": 1},
    )
    load(tmp_path / "tiny.gguf", tmp_path / "cache")
