"""A model is served only with all of its weights, and with none of them left out."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForSequenceClassification, LlamaModel

from latentwire_service.engine.errors import (
    DamagedModelError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from latentwire_service.engine.hf.loader import LoadedModel, load_model
from support.engine.architectures import SERVED
from support.tiny_models import build_model, build_tokenizer, llama_config, qwen2_config, save_model

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"

Weights = dict[str, torch.Tensor]


def load(folder: Path) -> LoadedModel:
    return load_model(str(folder), device=CPU, dtype=torch.float32, cache_dir=folder / "cache")


def change(folder: Path, change_weights: Callable[[Weights], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change_weights(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("family", SERVED)
def test_a_checkpoint_with_one_weight_removed_is_refused_by_name(
    family: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "tiny", SERVED[family]())
    load(folder)
    name = random.Random(family).choice(sorted(load_file(folder / WEIGHTS)))
    change(folder, lambda weights: weights.pop(name))
    with pytest.raises(
        DamagedModelError, match=r"weights? (is|are) missing from its files"
    ) as caught:
        load(folder)
    # The LM head and the blocks with experts of some families have other names in the files.
    parts = name.removesuffix("embed_out.weight").replace("block_sparse_moe.gate", "mlp.gate")
    assert (parts or "lm_head.weight") in str(caught.value)


@pytest.mark.parametrize("config", [llama_config(), qwen2_config()], ids=["untied", "tied"])
@pytest.mark.parametrize("shard_size", ["20KB", "10GB"])
@pytest.mark.parametrize("seed", range(3))
def test_a_weight_is_missed_in_one_file_and_in_shards(
    config: Any, shard_size: str, seed: int, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    build_model(config, 0, CPU, torch.float32).save_pretrained(folder, max_shard_size=shard_size)
    build_tokenizer().save_pretrained(folder)
    load(folder)
    file = random.Random(seed).choice(sorted(folder.glob("*.safetensors")))
    weights = load_file(file)
    name = random.Random(seed).choice(sorted(weights))
    del weights[name]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(DamagedModelError, match=re.escape(name)):
        load(folder)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny")
    change(folder, lambda weights: [weights.pop(name) for name in list(weights) if ".1." in name])
    with pytest.raises(DamagedModelError) as caught:
        load(folder)
    assert str(caught.value) == (
        "tiny cannot be loaded: 9 weights are missing from its files: "
        "model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight, "
        "model.layers.1.mlp.gate_proj.weight and 6 more"
    )


@pytest.mark.parametrize("saved_class", [LlamaModel, LlamaForSequenceClassification])
def test_a_model_without_lm_head_is_refused_with_the_class_that_saved_it(
    saved_class: Any, tmp_path: Path
) -> None:
    saved_class(llama_config()).save_pretrained(tmp_path / "tiny")
    build_tokenizer().save_pretrained(tmp_path / "tiny")
    with pytest.raises(DamagedModelError) as caught:
        load(tmp_path / "tiny")
    assert str(caught.value) == (
        "tiny cannot be loaded: 1 weight is missing from its files: lm_head.weight; they were "
        f"saved from {saved_class.__name__}, and LlamaForCausalLM is what can be served"
    )


def test_a_torch_file_is_checked_too(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny")
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    load(folder)
    del weights["model.norm.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(DamagedModelError, match=r"missing from its files: model\.norm\.weight"):
        load(folder)


def test_a_torch_file_with_a_weight_without_values_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny")
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weights["model.norm.weight"] = weights["model.norm.weight"].to("meta")
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(DamagedModelError, match="tiny cannot be loaded: "):
        load(folder)


def set_config(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return apply


def set_weight(name: str, value: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda weights: weights.update({name: value}))


def spoil(value: float) -> Callable[[Path], None]:
    return lambda folder: change(
        folder, lambda weights: weights["model.layers.1.mlp.up_proj.weight"][3].fill_(value)
    )


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (
            set_config(num_hidden_layers=4),
            DamagedModelError,
            r"9 weights are missing from its files: model\.layers\.3\.",
        ),
        (
            set_config(num_hidden_layers=2),
            UnsupportedModelError,
            r"more layers than the 2 of config\.json: model\.layers\.2\.",
        ),
        (
            set_config(hidden_size=96),
            DamagedModelError,
            r"lm_head\.weight has shape \[320, 48\] in its files, but config\.json says "
            r"\[320, 96\] and \d+ more",
        ),
        (
            set_config(vocab_size=321),
            DamagedModelError,
            r"lm_head\.weight has shape \[320, 48\] in its files, but .* says \[321, 48\]",
        ),
        (
            set_config(attention_bias=True),
            DamagedModelError,
            r"12 weights are missing from its files: model\.layers\.0\.self_attn\.k_proj\.bias",
        ),
        (
            set_weight("model.norm.weight", torch.zeros(47)),
            DamagedModelError,
            r"model\.norm\.weight has shape \[47\] in its files, but config\.json says \[48\]$",
        ),
        (
            set_weight("lm_head.bias", torch.zeros(320)),
            UnsupportedModelError,
            r"its files hold lm_head\.bias, which LlamaForCausalLM computes without",
        ),
        (
            set_weight("model.layers.0.self_attn.q_proj.bias", torch.zeros(48)),
            UnsupportedModelError,
            r"its files hold model\.layers\.0\.self_attn\.q_proj\.bias, which",
        ),
        (
            spoil(float("nan")),
            DamagedModelError,
            r"model\.layers\.1\.mlp\.up_proj\.weight holds values that are not finite in float32",
        ),
        (
            spoil(float("-inf")),
            DamagedModelError,
            r"model\.layers\.1\.mlp\.up_proj\.weight holds values that are not finite in float32",
        ),
    ],
)
def test_files_that_contradict_the_config_are_refused(
    damage: Callable[[Path], None], error: type[ModelError], reason: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "tiny")
    damage(folder)
    with pytest.raises(ModelError, match=f"^tiny cannot be loaded: .*{reason}") as caught:
        load(folder)
    assert type(caught.value) is error
    assert len(str(caught.value)) < 400


def test_weights_of_other_parts_are_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(tmp_path / "tiny")
    extra = {"visual.blocks.0.weight": torch.ones(3), "mtp.layers.0.norm.weight": torch.ones(3)}
    derived = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    change(folder, lambda weights: weights.update(extra | derived))
    load(folder)
    assert [record.message for record in caplog.records if "does not use" in record.message] == [
        "llama: the model does not use mtp.layers.0.norm.weight, visual.blocks.0.weight"
    ]


@pytest.mark.parametrize(
    ("is_tied", "says_tied"), [(True, False), (False, True)], ids=["head-missing", "head-there"]
)
def test_a_wrong_tie_is_refused_or_changes_nothing(
    is_tied: bool, says_tied: bool, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(tie_word_embeddings=is_tied))
    set_config(tie_word_embeddings=says_tied)(folder)
    if is_tied:
        with pytest.raises(DamagedModelError, match=r"lm_head\.weight"):
            load(folder)
    else:
        head = load(folder).model.get_output_embeddings().weight
        assert torch.equal(head, load_file(folder / WEIGHTS)["lm_head.weight"])


def lose_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def cut_shard(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def point_to_lfs(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (lose_shard, ModelNotFoundError, "model-00002-of-00002.safetensors is missing"),
        (cut_shard, DamagedModelError, "model-00002-of-00002.safetensors is cut short"),
        (point_to_lfs, ModelNotFoundError, "model-00002-of-00002.safetensors is a pointer of Git"),
    ],
)
def test_a_shard_that_is_not_there_is_named(
    damage: Callable[[Path], None], error: type[ModelError], reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    model = build_model(llama_config(), 0, CPU, torch.float32)
    model.save_pretrained(folder, max_shard_size="200KB")
    build_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("model-*-of-00002.safetensors"))) == 2
    damage(folder)
    with pytest.raises(ModelError, match=f"tiny cannot be loaded: {reason}") as caught:
        load(folder)
    assert type(caught.value) is error
