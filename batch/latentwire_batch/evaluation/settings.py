"""The settings of one evaluation: flags, else `LATENTWIRE_EVALUATE_*` variables, else defaults."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from latentwire.constants import DEFAULT_MAX_RETRIES
from latentwire_batch.config import OwnReplicaFields
from latentwire_batch.locations import GivenPlace

# One request is a forward pass or one short plan.
_REQUEST_TIMEOUT_S = 600.0
_MAX_TEXT_CHARS = 4096


class ReceiverFields(BaseModel):
    """The service that reads the messages."""

    url: str | None = Field(
        default=None,
        description="Address of a running service that has loaded the bridge; absent: evaluate "
        "starts its own replica.",
    )
    api_key: SecretStr | None = Field(
        default=None, description="API key, when the service requires one."
    )
    api_key_file: Path | None = Field(
        default=None,
        description="File with the API key in its first line. Unlike a flag, a file does not show "
        "in the list of processes.",
    )
    concurrency: int | None = Field(
        default=None,
        ge=1,
        description="Requests in flight; absent: the service's slots, limits.max_slots of /info.",
    )
    timeout: float = Field(
        default=_REQUEST_TIMEOUT_S, gt=0, description="Maximum time for one request, in seconds."
    )
    max_retries: int = Field(
        default=DEFAULT_MAX_RETRIES,
        ge=0,
        description="Further attempts for a request that failed.",
    )
    ready_timeout: float = Field(
        default=120.0,
        gt=0,
        description="Maximum time until the service at --url is ready, in seconds.",
    )


class AnswerFields(BaseModel):
    """Whether the receiver solves the tasks, which likelihood cannot say."""

    answers: str | None = Field(
        default=None,
        min_length=1,
        description="Also let the receiver solve each task, and compare the end of its text with "
        "this field: a number, or a text.",
    )
    answers_file: Path | None = Field(
        default=None,
        description="JSON or JSON Lines file that has the field and the tasks' ids; absent: the "
        "field is a column of the dataset.",
    )
    id_field: str = Field(
        default="id", min_length=1, description="Field of --answers-file that holds the id."
    )
    answer_before: str = Field(
        default="{task}\nThe plan: ",
        max_length=_MAX_TEXT_CHARS,
        description="Text of the user turn before the message, when the receiver solves the task; "
        "{task} stands for the task.",
    )
    answer_after: str = Field(
        default="\nFollow the plan. End with the answer alone.",
        max_length=_MAX_TEXT_CHARS,
        description="Text of the user turn after the message, when the receiver solves the task.",
    )
    max_new_tokens: int = Field(
        default=256, ge=1, description="Maximum tokens of a solution, which is generated greedily."
    )


class EvaluationFields(BaseModel):
    """What is evaluated, and where the result goes."""

    dataset: CliPositionalArg[GivenPlace] = Field(
        description="Output of collect, a Parquet file, or a save_to_disk directory; also a URL."
    )
    split: str | None = Field(
        default=None, description="Split to evaluate, of a dataset that has several."
    )
    bridge: str | None = Field(
        default=None,
        min_length=1,
        description="Directory of the bridge, or the name of a built-in bridge: embeddings, norm "
        "or weights. Required without --compressor; with it, absent: no receiver reads the "
        "latents, and no service is needed.",
    )
    compressor: tuple[str, ...] = Field(
        default=(),
        description="Evaluate a compressor in place of the controls: NAME or DIR, then :K for the "
        "number of rows, then @ and a number format, like mean-pool:16@int8. The name full stands "
        "for all rows. Repeat the flag for several.",
    )
    k: int | None = Field(
        default=None, ge=1, description="Rows of the compressors that state no :K."
    )
    limit: int | None = Field(
        default=None, ge=1, description="Maximum number of tasks to score; absent: all held out."
    )
    held_out: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Fraction of the tasks that fit-bridge held out; absent: as bridge.json says. "
        "1 scores all tasks, for a dataset that the bridge was not fitted to.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the shuffled rows, the noise and the intervals. bridge.json says "
        "which tasks are held out; for a bridge that does not, this seed does, with --held-out.",
    )
    before: str | None = Field(
        default=None,
        max_length=_MAX_TEXT_CHARS,
        description="Text of the user turn before the message; absent: the one that the bridge was "
        "fitted with.",
    )
    after: str | None = Field(
        default=None,
        max_length=_MAX_TEXT_CHARS,
        description="Text of the user turn after the message; absent: the one that the bridge was "
        "fitted with.",
    )
    json_file: Path | None = Field(
        default=None, description="Write all numbers to this file, as JSON."
    )
    html: Path | None = Field(
        default=None, description="Write a report to this file: one HTML file that loads nothing."
    )


class EvaluateSettings(
    # Flags are listed from the last base to the first.
    OwnReplicaFields,
    AnswerFields,
    ReceiverFields,
    EvaluationFields,
    BaseSettings,
):
    """Settings of one evaluation. Never changed after construction."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_EVALUATE_", env_ignore_empty=True, frozen=True
    )

    @field_validator("dataset", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object) -> object:
        """Refuse what a script passes when its own variable is not set: it is no path."""
        if value == "":
            raise ValueError("must not be empty")
        return value
