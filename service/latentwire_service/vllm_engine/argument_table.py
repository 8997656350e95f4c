"""Every argument of vLLM's engine: `--engine-arg` may set it, a flag has its place, or none may.

Knows the arguments of the versions that were tested, and imports no vLLM. An argument that a newer
version adds is in no table, and is refused: nobody has checked what it does to hidden rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ONE_SERVICE = "start one service for each replica"
_MODEL_ITSELF = "it would serve something else than the files of --model say"
_FOREIGN_CODE = "it would load code by its name"
_TEXT_ONLY = "requests hold text only"
_NO_ADAPTERS = "requests cannot name an adapter"
_NO_EFFECT = "answers hold nothing of it"
_SPECULATIVE = "with speculative decoding, hidden rows would belong to drafts"
_ONE_MACHINE = "hidden rows reach the service on one machine"
_NEVER_ASLEEP = "the model and its weights stay in memory while the service runs"
_OWN_METRICS = "the service has metrics of its own"
_OWN_LOG = "use --log-level and --log-format"
_TURNS = "callers take turns"
_UNTESTED = "hidden rows were not tested with it"
_TOKENIZES = "the service tokenizes"

# A flag, or the service itself, sets these, or none may.
_REASONS: Mapping[str, tuple[str, ...]] = {
    "use --model": ("model", "model_weights"),
    "it is the name of --model": ("served_model_name",),
    "use --revision": ("revision", "code_revision", "tokenizer_revision"),
    "use --trust-remote-code": ("trust_remote_code",),
    "use --dtype": ("dtype",),
    "use --max-model-len": ("max_model_len",),
    "use --max-slots": ("max_num_seqs", "max_num_active_seqs"),
    "use --max-queue": ("max_num_queued_reqs", "max_num_queued_tokens"),
    "use --prefill-chunk": ("max_num_batched_tokens",),
    "use --tensor-parallel-size": ("tensor_parallel_size",),
    "use --pipeline-parallel-size": ("pipeline_parallel_size",),
    "use --gpu-memory-utilization": ("gpu_memory_utilization",),
    "use --quantization": ("quantization", "quantization_config"),
    "use --drain-timeout": ("shutdown_timeout",),
    "use the variable HF_TOKEN": ("hf_token",),
    "use the variable HF_HOME": ("download_dir",),
    "use OpenTelemetry's variables": ("otlp_traces_endpoint", "collect_detailed_traces"),
    "hidden rows need it": ("worker_extension_cls",),
    "each request has a seed of its own": ("seed",),
    "it is the model's own": ("tokenizer",),
    _TOKENIZES: (
        "skip_tokenizer_init",
        "tokenizer_mode",
        "tokens_only",
        "renderer_num_workers",
    ),
    "only generation has plans": ("runner", "convert", "pooler_config"),
    "the service applies it": ("generation_config",),
    "the service applies the model's own": ("override_generation_config",),
    _MODEL_ITSELF: (
        "hf_config_path",
        "hf_overrides",
        "config_format",
        "ignore_patterns",
        "weight_transfer_config",
    ),
    _FOREIGN_CODE: (
        "model_class_overrides",
        "scheduler_cls",
        "worker_cls",
        "io_processor_plugin",
        "reasoning_parser_plugin",
        "kv_transfer_config",
        "log_config_file",
        # Platforms that are packages of their own read it as they like.
        "additional_config",
    ),
    "it would change which tokens are sampled": ("logits_processors", "watermark_config"),
    "rows of the same request would differ": (
        "enable_mamba_cache_stochastic_rounding",
        "mamba_cache_philox_rounds",
    ),
    _SPECULATIVE: (
        "speculative_config",
        "spec_method",
        "spec_model",
        "spec_tokens",
        "per_request_spec_decode_metrics",
    ),
    "hidden rows belong to tokens that come one after the other": ("diffusion_config",),
    _ONE_SERVICE: (
        "data_parallel_size",
        "data_parallel_rank",
        "data_parallel_start_rank",
        "data_parallel_size_local",
        "data_parallel_address",
        "data_parallel_rpc_port",
        "data_parallel_hybrid_lb",
        "data_parallel_external_lb",
        "data_parallel_multi_port_external_lb",
        "data_parallel_backend",
        "enable_elastic_ep",
        "elastic_ep_max_dp_size",
        "enable_dbo",
        "ubatch_size",
        "dbo_decode_token_threshold",
        "dbo_prefill_token_threshold",
        "dp_sync_interval",
        "disable_nccl_for_dp_synchronization",
        "prefill_schedule_interval",
        "aggregate_engine_logging",
        "enable_fault_tolerance",
        "fault_tolerance_config",
        "_api_process_count",
        "_api_process_rank",
    ),
    _ONE_MACHINE: ("master_addr", "master_port", "nnodes", "node_rank", "ray_workers_use_nsight"),
    _UNTESTED: (
        "prefill_context_parallel_size",
        "enable_batch_sharded_sampling",
        "kv_sharing_fast_prefill",
        "stream_interval",
    ),
    _NO_ADAPTERS: (
        "enable_lora",
        "max_loras",
        "max_lora_rank",
        "default_mm_loras",
        "fully_sharded_loras",
        "max_cpu_loras",
        "lora_dtype",
        "lora_target_modules",
        "enable_tower_connector_lora",
        "specialize_active_lora",
        "enable_mixed_moe_lora_format",
        "enable_moe_shared_loras",
        "max_lora_cls_labels",
    ),
    _TEXT_ONLY: (
        "allowed_local_media_path",
        "allowed_media_domains",
        "enable_prompt_embeds",
        "language_model_only",
        "limit_mm_per_prompt",
        "enable_mm_embeds",
        "interleave_mm_strings",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "mm_processor_cache_gb",
        "mm_processor_cache_type",
        "mm_hasher_algorithm",
        "mm_shm_cache_max_object_size_mb",
        "mm_encoder_only",
        "mm_encoder_tp_mode",
        "mm_encoder_attn_backend",
        "mm_encoder_attn_dtype",
        "mm_encoder_fp8_scale_path",
        "mm_encoder_fp8_scale_save_path",
        "mm_encoder_fp8_scale_save_margin",
        "mm_tensor_ipc",
        "mm_processor_device",
        "mm_ipc_gpu_memory_gb",
        "mm_device_do_normalize",
        "skip_mm_profiling",
        "video_pruning_rate",
        "video_pruning_method",
        "disable_chunked_mm_input",
        "enable_mm_processor_stats",
        "enable_shm_tensor_arena",
        "ec_transfer_config",
        "ec_manager_config",
    ),
    _NO_EFFECT: (
        "enable_return_routed_experts",
        "return_sampling_mask",
        "max_logprobs",
        "logprobs_mode",
        "enable_trace_replay",
        "structured_outputs_config",
        "aux_output_config",
        "reasoning_parser",
        "reasoning_config",
        "profiler_config",
    ),
    _TURNS: ("scheduling_policy",),
    # They hold the tokens of tasks and plans.
    "tasks stay in the service": ("kv_events_config", "enable_log_requests"),
    _OWN_LOG: ("log_level", "logging_config"),
    _OWN_METRICS: (
        "show_hidden_metrics_for_version",
        "kv_cache_metrics",
        "kv_cache_metrics_sample",
        "custom_histogram_buckets",
        "cudagraph_metrics",
        "enable_mfu_metrics",
    ),
    _NEVER_ASLEEP: (
        "enable_sleep_mode",
        "sleep_mode_offload_cudagraph",
        "sleep_preserve_parameter_names",
        "enable_nccl_comm_suspend",
    ),
}
REFUSED: Mapping[str, str] = {name: why for why, names in _REASONS.items() for name in names}

# How fast, on what, and with how much memory the model is computed. Rows stay those of the
# definition, up to rounding; the check at the start holds for every one of them.
ALLOWED = frozenset({
    # Reading the weights.
    "load_format", "model_loader_extra_config", "model_impl", "max_parallel_loading_workers",
    "safetensors_load_strategy", "safetensors_prefetch_num_threads",
    "safetensors_prefetch_block_size", "pt_load_map_location", "use_tqdm_on_load",
    "allow_deprecated_quantization", "enable_ep_weight_filter",
    # The KV cache.
    "kv_cache_dtype", "kv_cache_dtype_skip_layers", "block_size", "enable_prefix_caching",
    "prefix_caching_hash_algo", "prefix_cache_retention_interval", "prefix_match_unit",
    "kv_cache_memory_bytes", "num_gpu_blocks_override", "kv_offloading_size",
    "kv_offloading_backend", "disable_hybrid_kv_cache_manager", "swa_bounded_replay",
    # Weights outside the GPU.
    "offload_backend", "cpu_offload_gb", "cpu_offload_params", "offload_group_size",
    "offload_num_in_group", "offload_prefetch_step", "offload_params", "engram_config",
    # Scheduling.
    "enable_chunked_prefill", "max_num_scheduled_tokens", "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive", "scheduler_reserve_full_isl", "watermark",
    "async_scheduling",
    # Compilation and kernels.
    "enforce_eager", "compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size",
    "optimization_level", "performance_mode", "ir_op_priority", "kernel_config",
    "attention_config", "attention_backend", "disable_cascade_attn", "disable_sliding_window",
    "moe_backend", "linear_backend", "sparse_indexer_topk_backend", "all2all_backend",
    "enable_flashinfer_autotune", "gdn_prefill_backend", "kda_prefill_backend",
    "kda_decode_backend", "use_fp64_gumbel", "jit_monitor_mode", "jit_monitor_verbose",
    # State space models.
    "mamba_config", "mamba_cache_dtype", "mamba_ssm_cache_dtype", "mamba_block_size",
    "mamba_cache_mode", "enable_mamba_shared_prefix_checkpoint", "replayssm_buffer_len",
    "use_replayssm", "mamba_backend", "mamba_ssu_algorithm",
    # Several devices of one machine.
    "distributed_executor_backend", "distributed_timeout_seconds",
    "cpu_distributed_timeout_seconds", "numa_bind", "numa_bind_nodes", "numa_bind_cpus",
    "device_ids", "decode_context_parallel_size", "dcp_comm_backend", "dcp_q_replicate",
    "dcp_kv_cache_interleave_size", "cp_kv_cache_interleave_size", "enable_hc_sp",
    "enable_expert_parallel", "enable_eplb", "eplb_config", "expert_placement_strategy",
    "disable_custom_all_reduce", "enable_cumem_allocator",
    # What vLLM tells about itself.
    "disable_log_stats", "enable_logging_iteration_details", "enable_layerwise_nvtx_tracing",
    "fail_on_environ_validation",
})  # fmt: skip

# Other values read something else than the checkpoint's weights, or name a class to load.
_VALUES: Mapping[str, tuple[object, ...]] = {
    "load_format": ("auto", "hf", "safetensors", "fastsafetensors", "runai_streamer"),
    "model_impl": ("auto", "vllm", "transformers"),
    "distributed_executor_backend": ("mp", "uni"),
    "compilation_config.backend": ("", "eager", "inductor"),
    "attention_config.use_non_causal": (False,),
    "mamba_config.enable_stochastic_rounding": (False,),
    "compilation_config.inductor_passes": ({},),
}


def refusal(name: str) -> str | None:
    """Say why `--engine-arg` may not set an argument; None: it may, or its name is not known.

    Args:
        name: of an argument of vLLM's engine.
    """
    return REFUSED.get(name)


def value_refusal(name: str, value: Any) -> str | None:
    """Say which values an argument may have, if it may not have this one.

    Args:
        name: of an argument that `--engine-arg` may set.
        value: as JSON holds it.
    """
    given = {name: value}
    if isinstance(value, dict):
        given |= {f"{name}.{key}": inner for key, inner in value.items()}
    for path, found in given.items():
        values = _VALUES.get(path)
        if values is not None and found not in values:
            choices = " or ".join(repr(choice) for choice in values)
            return f"{path} may be {choices} only, not {found!r}"
    return None
