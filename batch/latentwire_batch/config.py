"""The settings of one collection: flags, else `LATENTWIRE_COLLECT_*` variables, else defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import BaseModel, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from latentwire import PlanOptions
from latentwire.constants import DEFAULT_MAX_RETRIES
from latentwire.number_formats import NumberFormat
from latentwire.sampling import PromptFields, SamplingFields, Seed
from latentwire_batch.compression.settings import CompressorFields
from latentwire_batch.dataset.schema import EXTRA_COLUMNS, SCHEMA
from latentwire_batch.flags import listed
from latentwire_batch.locations import GivenDirectory, GivenOutput
from latentwire_batch.ray.settings import PlacementFields
from latentwire_batch.tasks.rows import RowFields

# A collection fills all slots of a replica, and rows share its speed: 64 slots of 2048 tokens at
# 100 tokens/s take 20 minutes together. A dead replica shows by its connection, not by this limit.
_ROW_TIMEOUT_S = 3600.0
# "auto", or a number of at least 1; as in the settings of the service.
AutoInt = Literal["auto"] | Annotated[int, Field(ge=1)]
_SIZE_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20}
_SIZE_UNITS["GIB"] = 1 << 30
_EXTRA_NAMES = tuple(column.name for column in EXTRA_COLUMNS)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


class InputFields(BaseModel):
    """The tasks to plan, and the directory to write to."""

    dataset: Annotated[tuple[str, ...], NoDecode] = Field(
        min_length=1,
        description="Tasks: JSON (a list), JSON Lines, Parquet, or a save_to_disk directory; also "
        "compressed, or behind a URL. Or a dataset of the Hugging Face hub, like owner/name. "
        "Repeat the flag for several, whose rows follow one another; LATENTWIRE_COLLECT_DATASET is "
        "one of them, or a JSON list. With --layout hub, NAME= in front names the split, as in "
        "test=PATH.",
    )
    split: str | None = Field(
        default=None,
        description="Split to read, of a hub dataset or a directory with several. With --layout "
        "hub also the name of the split that other inputs give; absent: train. Without it, "
        "--layout hub writes all splits of the input.",
    )
    dataset_config: str | None = Field(
        default=None, description="Configuration of a hub dataset that has several."
    )
    dataset_revision: str | None = Field(
        default=None, description="Branch, tag or commit of a hub dataset; absent: the newest."
    )
    output_dir: GivenOutput = Field(
        description="Directory to write the dataset of latents to, or a URL like "
        "s3://bucket/folder, to which finished files are uploaded; also -o."
    )
    work_dir: GivenDirectory | None = Field(
        default=None,
        description="Parent of the directories for unfinished files, when --output-dir is a URL. "
        "Absent: latentwire/collect in the user's cache.",
    )
    task_field: str = Field(default="task", description="Field that holds the task.")
    conversations_index: int | None = Field(
        default=None,
        ge=0,
        description="Take turn N of conversations or messages as the task, instead of "
        "--task-field. Turns are counted from 0, and a system message is one of them.",
    )
    id_field: str = Field(
        default="id", description="Field that holds the id. Rows without it get their index as id."
    )
    limit: int | None = Field(
        default=None, ge=1, description="Maximum number of rows to read; absent: all."
    )
    shard: str | None = Field(
        default=None,
        description="Shard to collect, like 3/16 for the fourth of 16, into a folder of its own in "
        "--output-dir. /16 takes the number from SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX. "
        "Absent: the task of a Slurm job array collects its shard. none: all rows.",
    )
    skip_invalid: bool = Field(
        default=False,
        description="Set rows without a usable task aside, as failures, instead of refusing the "
        "dataset.",
    )


class ReplicaFields(BaseModel):
    """Running replicas to use, and limits for all replicas."""

    replica: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Address of a running replica, like http://host:8000. Repeat the flag for "
        "several; LATENTWIRE_COLLECT_REPLICA separates them by commas. A name with several "
        "addresses stands for all of them. Without it, collect starts its own replicas.",
    )
    api_key: SecretStr | None = Field(
        default=None, description="API key, when the replicas require one."
    )
    api_key_file: Path | None = Field(
        default=None,
        description="File with the API key in its first line. Unlike a flag, a file does not show "
        "in the list of processes.",
    )
    concurrency: int | None = Field(
        default=None,
        ge=1,
        description="Rows in flight per replica; absent: its slots, limits.max_slots of /info.",
    )
    timeout: float = Field(
        default=_ROW_TIMEOUT_S, gt=0, description="Maximum time for one row, in seconds."
    )
    max_retries: int = Field(
        default=DEFAULT_MAX_RETRIES, ge=0, description="Further attempts for a row that failed."
    )
    replica_timeout: float = Field(
        default=120.0, gt=0, description="Maximum time without any ready replica, in seconds."
    )

    @field_validator("replica", mode="before")
    @classmethod
    def _split_addresses(cls, value: object) -> object:
        """Let an environment variable hold several addresses, separated by commas."""
        if not isinstance(value, str):
            return value
        return tuple(filter(None, map(str.strip, value.split(","))))


class OwnReplicaFields(BaseModel):
    """How collect starts its own replicas, when none are given."""

    model: str = Field(default="demo", description="Own replicas: model to serve.")
    revision: str | None = Field(
        default=None, description="Own replicas: branch, tag or commit of a hub model."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] | None = Field(
        default=None, description="Own replicas: device."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] | None = Field(
        default=None, description="Own replicas: compute dtype."
    )
    threads: int | None = Field(default=None, ge=1, description="Own replicas: CPU threads.")
    max_slots: AutoInt | None = Field(
        default=None, description="Own replicas: sequences decoded together."
    )
    max_model_len: AutoInt | None = Field(
        default=None, description="Own replicas: maximum tokens of one sequence."
    )
    engine: Literal["latentwire", "vllm"] | None = Field(
        default=None, description="Own replicas: engine that runs the model."
    )
    tensor_parallel_size: int | None = Field(
        default=None,
        ge=1,
        description="Own replicas, --engine vllm: GPUs that share each layer of the model.",
    )
    pipeline_parallel_size: int | None = Field(
        default=None,
        ge=1,
        description="Own replicas, --engine vllm: groups of GPUs that share the layers.",
    )
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Own replicas, --engine vllm: fraction of each GPU's memory to use.",
    )
    quantization: str | None = Field(
        default=None, description="Own replicas, --engine vllm: method of a quantized model."
    )
    engine_arg: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Own replicas, --engine vllm: another argument of vLLM's engine, as KEY=VALUE. "
        "Repeat the flag for several; LATENTWIRE_COLLECT_ENGINE_ARG is a JSON list, or separates "
        "them by commas.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Own replicas: run code that is part of a hub model. Only for models that "
        "you trust.",
    )

    @field_validator("engine_arg", mode="before")
    @classmethod
    def _split_variable(cls, value: object) -> object:
        """Read a variable's JSON list, or split it at commas; flags arrive as a list."""
        if not isinstance(value, str):
            return value
        return listed(value) or tuple(filter(None, map(str.strip, value.split(","))))

    @field_validator("engine_arg")
    @classmethod
    def _refuse_without_value(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse what is no KEY=VALUE, before a replica is started with it."""
        for part in value:
            if not part.partition("=")[0].strip() or "=" not in part:
                raise ValueError("must be KEY=VALUE")
        return value


class ShardFields(BaseModel):
    """How large the files of a dataset may be."""

    max_shard_size: int = Field(
        default=500 * 10**6,
        ge=1,
        description="Maximum bytes of rows in one Arrow file of hf_dataset, or in one file of "
        "the hub layout before compression, like 500MB or 1GiB.",
    )

    @field_validator("max_shard_size", mode="before")
    @classmethod
    def _parse_size(cls, value: object) -> object:
        """Read sizes like `500MB`."""
        if not isinstance(value, str):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None or match[2].upper() not in _SIZE_UNITS:
            raise ValueError("must be a number of bytes, or like 500MB or 1GiB")
        return int(float(match[1]) * _SIZE_UNITS[match[2].upper()])


class CollectSettings(
    # Flags are listed from the last base to the first.
    ShardFields,
    CompressorFields,
    SamplingFields,
    PromptFields,
    OwnReplicaFields,
    PlacementFields,
    ReplicaFields,
    InputFields,
    BaseSettings,
):
    """Settings of one collection. Never read at import, never changed after construction."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_COLLECT_", env_ignore_empty=True, frozen=True
    )

    layout: Literal["classic", "hub"] = Field(
        default="classic",
        description="Names of the dataset's files. classic: data.parquet and hf_dataset. hub: "
        "data/train-00000-of-00001.parquet and so on, in which load_dataset finds the splits.",
    )
    push_to_hub: str | None = Field(
        default=None,
        description="Also push the finished dataset to this dataset of the Hugging Face hub, like "
        "owner/name, with the token of HF_TOKEN or hf auth login. Needs --layout hub.",
    )
    private: bool = Field(
        default=False,
        description="Make the dataset of --push-to-hub private, if it does not exist yet.",
    )
    k: int | None = Field(
        default=None,
        ge=0,
        description="Rows of each latent to keep; absent: all. With --compressor, the maximum "
        "number of rows that it returns; hidden_state then keeps all rows.",
    )
    seed: Seed | None = Field(
        default=None,
        description="Seed of the dataset, from which each row's seed follows. Drawn and recorded "
        "if absent.",
    )
    storage_dtype: NumberFormat = Field(
        default="float32",
        description="Number format of the stored latents: float32, float16, bfloat16, int8 or "
        "int4. latentwire.load gives float32 back.",
    )
    columns: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Columns to add to task, task_id, plan and hidden_state, separated by commas: "
        f"{', '.join(_EXTRA_NAMES)}.",
    )
    workers: AutoInt = Field(
        default="auto",
        description="Processes that receive rows. auto: one, and for many replicas one per 8 of "
        "them, or 3 behind https, and 4 cores. More than one needs --replica.",
    )
    overwrite: bool = Field(
        default=False, description="Discard the dataset in --output-dir and start over."
    )
    retry_failed: bool = Field(
        default=False, description="Retry the rows that failed, and merge them into the dataset."
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _parse_columns(cls, value: object) -> object:
        """Split names at commas; leave out those that every dataset has."""
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            return value
        names = {name.strip() for part in parts for name in str(part).split(",")} - {""}
        unknown = sorted(names - {*_EXTRA_NAMES, *SCHEMA.names})
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(_EXTRA_NAMES)}")
        return tuple(name for name in _EXTRA_NAMES if name in names)

    @field_validator("dataset", mode="before")
    @classmethod
    def _read_variable(cls, value: object) -> object:
        """Take a variable's text as one input, commas included, unless it is a JSON list."""
        return listed(value) or (value,) if isinstance(value, str) else value

    @field_validator("dataset", "split", "output_dir", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object) -> object:
        """Refuse what a script passes when its own variable is not set: it is no name."""
        if value == "" or (isinstance(value, list | tuple) and "" in value):
            raise ValueError("must not be empty")
        return value

    @property
    def row_fields(self) -> RowFields:
        """The fields of a record that make a row."""
        return RowFields(self.task_field, self.conversations_index, self.id_field)

    @property
    def plan_options(self) -> PlanOptions:
        """The fields that every row's request has besides its task, k and seed."""
        names = PromptFields.model_fields.keys() | SamplingFields.model_fields.keys()
        # An absent option is the service's to decide, and an older one may not know it.
        return cast(PlanOptions, self.model_dump(include=set(names), exclude_none=True))
