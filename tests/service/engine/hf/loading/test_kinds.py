"""What `--model` names, when it is no model that can be served: each is told by what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from latentwire_service.engine.errors import (
    DamagedModelError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from latentwire_service.engine.hf.loader import load_model
from support.tiny_models import build_tokenizer, llama_config, save_model

MAX_CHARS = 270
ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 320,
}


def refusal(name: str | Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(
            str(name),
            device=torch.device("cpu"),
            dtype=torch.float32,
            cache_dir=Path("/nowhere"),
        )
    assert len(str(caught.value)) < MAX_CHARS
    assert "\n" not in str(caught.value)
    return caught.value


def files(*names: str, **texts: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
        for name, text in texts.items():
            (folder / name.replace("__", ".")).write_text(text)

    return write


def without(
    *patterns: str, then: Callable[[Path], None] = lambda _: None
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_model(folder)
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()
        then(folder)

    return write


def config_of(config_class: Any, **options: Any) -> Callable[[Path], None]:
    return lambda folder: config_class(**options).save_pretrained(folder)


def encoder(folder: Path) -> None:
    hf.BertForMaskedLM(hf.BertConfig(**ENCODER)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"})


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (files(), ModelNotFoundError, "x is an empty directory: a directory in Hugging Face"),
        (files("readme.txt"), ModelNotFoundError, "x holds no model: a directory in Hugging"),
        (files("tokenizer.json"), ModelNotFoundError, "x holds a tokenizer, but no model"),
        (without("config.json"), ModelNotFoundError, "x has weights, but no config.json"),
        (
            files(adapter_config__json=ADAPTER),
            UnsupportedModelError,
            "x is an adapter (LORA), not a model: merge it into some/base with `merge_and_unload`",
        ),
        (
            files("tokenizer.json", "adapter_model.safetensors", adapter_config__json="?"),
            UnsupportedModelError,
            "x is an adapter (PEFT), not a model: merge it into its base model",
        ),
        (
            without(then=files(adapter_config__json=ADAPTER)),
            UnsupportedModelError,
            "x holds both a model and an adapter (adapter_config.json)",
        ),
        (files("model_index.json"), UnsupportedModelError, "x is a diffusers pipeline"),
        (files("modules.json"), UnsupportedModelError, "x is a sentence-transformers model"),
        (files("params.json"), UnsupportedModelError, "x is a model in the format of its maker"),
        (files("a.onnx"), UnsupportedModelError, "x is a model for ONNX"),
        (
            files("checkpoint-20/config.json"),
            UnsupportedModelError,
            "x is a training run; name one of its checkpoints, checkpoint-20",
        ),
        (
            files("snapshots/0af1/config.json"),
            UnsupportedModelError,
            "x is a folder of the hub's cache; name snapshots/0af1, or the hub id",
        ),
        (
            without("*.safetensors", then=files("onnx/model.onnx")),
            UnsupportedModelError,
            "x is a model for ONNX",
        ),
        (
            without("*.safetensors", then=files("tf_model.h5")),
            UnsupportedModelError,
            "x is a model with weights for TensorFlow only; convert them",
        ),
        (
            without("*.safetensors", then=files("flax_model.msgpack")),
            UnsupportedModelError,
            "x is a model with weights for Flax only; convert them",
        ),
        (without("*.safetensors"), ModelNotFoundError, "x cannot be loaded: it has no weights"),
        (without("tokenizer*"), ModelNotFoundError, "x cannot be loaded: it has no tokenizer"),
        (
            without("tokenizer.json"),
            DamagedModelError,
            "x cannot be loaded: its tokenizer ",
        ),
        (
            files(config__json="{"),
            DamagedModelError,
            "x cannot be loaded: its config.json is not JSON (",
        ),
        (
            files(config__json="[1]"),
            DamagedModelError,
            "x cannot be loaded: its config.json is no JSON object",
        ),
        (
            files(config__json='{"model_type": 3}'),
            UnsupportedModelError,
            "does not know its architecture, 3",
        ),
        (
            files(config__json="{}"),
            UnsupportedModelError,
            "x cannot be loaded: its config.json names no architecture (`model_type`)",
        ),
        (
            files(config__json='{"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}'),
            UnsupportedModelError,
            "x cannot be loaded: it comes with Python code of its own; read the code, then allow "
            "it with --trust-remote-code",
        ),
        (encoder, UnsupportedModelError, "x cannot be served: bert is an encoder"),
        (config_of(hf.T5Config), UnsupportedModelError, "t5 is an encoder-decoder"),
        (config_of(hf.WhisperConfig), UnsupportedModelError, "whisper is an encoder-decoder"),
        (
            config_of(hf.Qwen2_5_VLConfig),
            UnsupportedModelError,
            "x cannot be served: qwen2_5_vl is a model of text and images; only text models",
        ),
        (
            config_of(hf.Mistral3Config),
            UnsupportedModelError,
            "mistral3 is a model of text and images; only text models are served",
        ),
        (
            config_of(hf.LlavaConfig),
            UnsupportedModelError,
            "llava is a model of text and images; only text models are served",
        ),
        (
            config_of(hf.Qwen2AudioConfig),
            UnsupportedModelError,
            "qwen2_audio is a model of text and sound; only text models are served",
        ),
        (
            config_of(hf.ViTConfig),
            UnsupportedModelError,
            "vit makes no text token by token; only decoder-only models are served",
        ),
    ],
)
def test_a_directory_that_cannot_be_served_is_told_by_what_it_is(
    content: Callable[[Path], None], error: type[ModelError], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    content(folder)
    refused = refusal(folder)
    assert message in str(refused)
    assert type(refused) is error
    assert str(tmp_path) not in str(refused)


def test_a_file_of_a_model_is_refused_with_what_to_name(tmp_path: Path) -> None:
    refused = refusal(save_model(tmp_path / "x") / "model.safetensors")
    assert str(refused) == (
        "model.safetensors is a file: name the directory that holds the model, or a .gguf file"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some-owner/no-model", "the hub cannot be reached for a model that is not in its cache"),
        ("a/b/c", "a model of the hub is called `name` or `owner/name`"),
        ("a name", "a model of the hub is called `name` or `owner/name`"),
        ("", "--model is empty"),
        ("https://user:s3cret@host/x.gguf?key=s3cret", "--model is a URL: name a model of the hub"),
        ("S3:/bucket/model", "--model is a URL"),
        ("x" * 300, "a model of the hub is called"),
        ("/" + "x" * 300, "there is no directory xxx"),
        ("~no-such-user/model", "there is no directory model"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused = refusal(name)
    assert message in str(refused)
    assert "s3cret" not in str(refused)
    assert type(refused) is ModelNotFoundError


def test_what_else_is_installed_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "x", llama_config())
    (folder / "adapter_config.json").write_text(ADAPTER)
    for is_installed in (False, True):
        for module in ("integrations.peft", "models.auto.auto_factory"):
            monkeypatch.setattr(
                f"transformers.{module}.is_peft_available", lambda there=is_installed: there
            )
        assert "holds both a model and an adapter" in str(refusal(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (files(adapter_config__json=ADAPTER), "is an adapter (LORA), not a model: merge it into"),
        (without(then=files(adapter_config__json=ADAPTER)), "holds both a model and an adapter"),
    ],
)
def test_an_adapter_of_the_hub_is_refused_like_a_local_one(
    content: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    content(snapshot)
    assert f"some/adapter {message}" in str(refusal("some/adapter"))
