"""`latentwire plan`: one task in, the plan, the latent's shape and the usage out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import typer
from pydantic import Field, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from latentwire.answer_form import LatentFields
from latentwire.call import PlanOptions
from latentwire.client import Client
from latentwire.constants import DEFAULT_BASE_URL, DEFAULT_TIMEOUT_S
from latentwire.errors import ConnectionFailedError, InvalidArgumentError, LatentwireError
from latentwire.plan_latent import PlanLatent
from latentwire.sampling import PromptFields, SamplingFields, Seed
from latentwire.settings_flags import FlagError, flag_of, name_variables, parse_settings

EXIT_FAILED = 1
EXIT_USAGE = 2
_COMMAND = "latentwire plan"
# Arguments of the client whose flag has another name.
_FLAGS = {"base_url": "--url", "timeout_s": "--timeout", "api_key": "--api-key", "task": "TASK"}


# Flags whose variables are settings of `latentwire serve`, with values of another kind.
_WITHOUT_VARIABLE = {"compressor", "dtype"}


class _Variables(EnvSettingsSource):
    """Variables of the environment, without those of the service."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return a field's value, its key and whether it is JSON; None: it has no variable."""
        if field_name in _WITHOUT_VARIABLE:
            return None, field_name, False
        return super().get_field_value(field, field_name)


class _CallFields(LatentFields):
    """The task, the service and the output."""

    task: CliPositionalArg[str] = Field(description="The task, in words.")
    url: str = Field(default=DEFAULT_BASE_URL, description="Address of the service.")
    api_key: SecretStr | None = Field(
        default=None, description="API key, when the service requires one."
    )
    output: Path | None = Field(
        default=None,
        description="Write the hidden state to this file (.npy), in float32; with "
        "--no-return-hidden-state, the compressed one.",
    )
    timeout: float = Field(
        default=DEFAULT_TIMEOUT_S,
        description="Maximum silence while waiting for the answer, in seconds.",
    )


class PlanSettings(SamplingFields, PromptFields, _CallFields, BaseSettings):
    """One call of `latentwire plan`: flags, else `LATENTWIRE_*` variables, else defaults."""

    model_config = SettingsConfigDict(env_prefix="LATENTWIRE_", env_ignore_empty=True, frozen=True)

    seed: Seed | None = Field(
        default=None, description="Seed of the answer; the same seed repeats it. Drawn if absent."
    )
    greedy: bool = Field(default=False, description="The same as --no-do-sample.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from."""
        del env_settings
        return init_settings, _Variables(settings_cls), dotenv_settings, file_secret_settings

    @property
    def plan_options(self) -> PlanOptions:
        """The options that were given; the service decides the others."""
        given = self.model_dump(
            include={*PlanOptions.__annotations__}, exclude_unset=True, exclude_none=True
        )
        if self.greedy:
            given["do_sample"] = False
        return cast(PlanOptions, given)


def main(args: list[str]) -> int:
    """Run `latentwire plan`.

    Args:
        args: the command line after `latentwire plan`.

    Returns:
        0 for an answer; 2 for bad usage; 1 when the service or the file fails.
    """
    try:
        settings = parse_settings(
            PlanSettings,
            args,
            prog=_COMMAND,
            description="Plan one task; print the plan, the latent's shape and the usage.",
        )
        _check_output(settings)
        _plan(settings)
    except FlagError as error:
        return _fail(_with_source(str(error), args), EXIT_USAGE)
    except InvalidArgumentError as error:
        return _fail(_with_source(_name_flag(error), args), EXIT_USAGE)
    except ConnectionFailedError as error:
        advice = "start a service with `latentwire serve`, or name another one by --url"
        return _fail(LatentwireError(f"{error}; {advice}"), EXIT_FAILED)
    except (LatentwireError, OSError) as error:
        return _fail(error, EXIT_FAILED)
    return 0


def _plan(settings: PlanSettings) -> None:
    api_key = settings.api_key.get_secret_value() if settings.api_key else None
    with Client(
        settings.url, timeout_s=settings.timeout, api_key=api_key, on_retry=_report_retry
    ) as client:
        plan = client.plan_latent(settings.task, k=settings.k, **settings.plan_options)
    _print_plan(plan)
    rows = plan.hidden_state if settings.return_hidden_state else plan.hidden_state_comp
    if settings.output is not None and rows is not None:
        _save(rows, settings.output)


def _report_retry(error: LatentwireError, pause_s: float) -> None:
    typer.echo(f"{_COMMAND}: {_one_line(error)}; retrying in {pause_s:.1f} s", err=True)


def _print_plan(plan: PlanLatent) -> None:
    usage = plan.usage
    typer.echo(plan.plan)
    typer.echo("")
    if plan.has_hidden_state:
        typer.echo(f"hidden_state: {list(plan.hidden_state.shape)} float32")
    if plan.hidden_state_comp is not None and plan.compressor is not None:
        shape = list(plan.hidden_state_comp.shape)
        typer.echo(f"hidden_state_comp: {shape} float32, compressor {plan.compressor.name}")
    typer.echo(
        f"usage: {usage.prompt_tokens} prompt tokens, {usage.completion_tokens} completion tokens, "
        f"{usage.latent_rows} hidden rows; finish_reason {plan.finish_reason}, seed {plan.seed}"
    )


def _check_output(settings: PlanSettings) -> None:
    """Refuse a file that cannot be written: not only after minutes of generation.

    Raises:
        FlagError: the file cannot be opened for writing, or there is nothing to write to it.
    """
    path = settings.output
    if path is None:
        return
    if not settings.return_hidden_state and settings.compressor is None:
        raise FlagError("--output: with --no-return-hidden-state and no --compressor, no rows come")
    try:
        if path.exists():
            path.open("ab").close()
        else:
            # Permission bits are not enough: they say nothing to root or about a read-only disk.
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise FlagError(f"--output: {path}: {error.strerror}") from error


def _save(hidden_state: npt.NDArray[np.float32], path: Path) -> None:
    # Through an open file: numpy would add ".npy" to a name that lacks it.
    with path.open("wb") as file:
        np.save(file, hidden_state)
    typer.echo(f"saved: {path}")


def _fail(error: Exception, status: int) -> int:
    """Report an error in one line on stderr and return the exit status."""
    typer.echo(f"{_COMMAND}: {_one_line(error)}", err=True)
    return status


def _with_source(message: str, args: list[str]) -> FlagError:
    return FlagError(name_variables(message, PlanSettings, args))


def _name_flag(error: InvalidArgumentError) -> str:
    """Return the error's text with the flag in place of the argument that it names."""
    if error.field in _FLAGS or error.field in PlanSettings.model_fields:
        flag = _FLAGS.get(error.field) or flag_of(error.field)
        return flag + str(error).removeprefix(error.field)
    return str(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
