"""Settings of `latentwire serve`: flags, else `LATENTWIRE_*` environment variables, else defaults.

Never read at import: the command builds one frozen `Settings` and passes on what is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# "auto", or a number of at least 1.
AutoInt = Literal["auto"] | Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Serve latents of one model over HTTP."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        cli_prog_name="latentwire serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        protected_namespaces=(),
    )

    model: str = Field(
        default="demo",
        min_length=1,
        description="Hub id, local directory, .gguf file, or `demo` (SmolLM2-135M-Instruct).",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; the default is reachable from this machine only.",
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        default="auto", description="auto: cuda, else mps, else cpu."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="auto: bf16 on a GPU, fp32 on the CPU."
    )
    max_slots: AutoInt = Field(
        default="auto",
        description="Sequences decoded together; auto: what memory holds, at most 64.",
    )
    max_model_len: AutoInt = Field(
        default="auto",
        description="Prompt and generated tokens of one sequence; auto: the model's own limit, "
        "at most 4096.",
    )
    memory_fraction: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Part of the memory free after loading that the KV cache may take.",
    )
    prefill_chunk: int = Field(
        default=512,
        ge=1,
        description="Prompt positions computed in one step: running requests wait no longer.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the decode step (inductor; CUDA graphs on a GPU): faster steps, after "
        "a first start of minutes. Later ones find the result in --cache-dir.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads for the model; default: torch's choice."
    )
    max_queue: int = Field(
        default=1024, ge=1, description="Requests that may wait for a slot before 429."
    )
    max_body_bytes: int = Field(
        default=1_048_576, ge=1024, description="Size of one request body before 413."
    )
    request_timeout: float | None = Field(
        default=None,
        gt=0,
        description="Seconds a request may take before 504; its X-Request-Timeout may be less.",
    )
    max_new_tokens_limit: int | None = Field(
        default=None, ge=1, description="Most max_new_tokens of a request; default: what fits."
    )
    max_header_bytes: int = Field(
        default=16_384, ge=1024, description="Size of one request's head before 400."
    )
    body_timeout: float = Field(
        default=60.0, gt=0, description="Seconds in which a request's body has to arrive, else 408."
    )
    drain_timeout: float = Field(
        default=100.0,
        gt=0,
        description="Seconds that running requests have after SIGTERM before they are failed.",
    )
    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Key that callers must send; may be repeated. With none, all may call.",
    )
    api_key_file: Path | None = Field(
        default=None,
        description="File with further keys, one per line: other users cannot see it in a list of "
        "processes.",
    )
    metrics_public: bool = Field(
        default=False, description="Answer /metrics without a key, where keys are set."
    )
    allowed_host: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Host header to answer; may be repeated. Default: any, but on a loopback "
        "address only its own names.",
    )
    cors_origin: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Web origin whose pages may call; may be repeated. Default: none.",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/latentwire"),
        description="Where converted GGUF files and compiled steps are kept.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run code that comes with a hub model. Only if you trust it."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log records to write."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="text: a line per record; json: an object per line."
    )

    @field_validator("api_key", "allowed_host", "cors_origin", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Take several values from one variable, divided by commas."""
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple):
            return values
        # A flag that is repeated comes as a list.
        return tuple(
            part.strip() if isinstance(part, str) else part
            for item in values
            for part in (item.split(",") if isinstance(item, str) else [item])
        )
