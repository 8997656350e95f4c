"""The `latentwire` command: arguments in, lines and exit statuses out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import numpy.typing as npt
import typer
from typer.core import TyperCommand

from latentwire.client import Client
from latentwire.constants import DEFAULT_BASE_URL, DEFAULT_TIMEOUT_S
from latentwire.errors import InvalidArgumentError, LatentwireError, MissingDependencyError
from latentwire.exchange import PlanOptions
from latentwire.extras import COLLECT, INSPECT, SERVE, ExtraCommand, run_extra_command
from latentwire.plan_latent import PlanLatent
from latentwire.version import VERSION

EXIT_FAILED = 1
EXIT_USAGE = 2

app = typer.Typer(
    help="Plans as latents: serve a model, ask it, collect datasets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class ForwardingCommand(TyperCommand):
    """A command that parses nothing: all its arguments, `--help` and `--` too, are another's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave the arguments in the context as typed."""
        ctx.args = list(args)
        return []


def main() -> None:
    """Run the command."""
    app(prog_name="latentwire")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"latentwire {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Exist, so that options before the subcommand have a place."""


@app.command("serve", cls=ForwardingCommand, help="Serve a model over HTTP (extra: service).")
def _serve(context: typer.Context) -> None:
    _forward(SERVE, context.args)


@app.command("collect", cls=ForwardingCommand, help="Make a dataset of latents (extra: batch).")
def _collect(context: typer.Context) -> None:
    _forward(COLLECT, context.args)


@app.command("inspect", cls=ForwardingCommand, help="Look at a dataset of latents (extra: batch).")
def _inspect(context: typer.Context) -> None:
    _forward(INSPECT, context.args)


@app.command("plan")
def _plan(
    task: Annotated[str, typer.Argument(help="The task, in words.")],
    url: Annotated[
        str, typer.Option(envvar="LATENTWIRE_URL", help="Address of the service.")
    ] = DEFAULT_BASE_URL,
    k: Annotated[
        int | None, typer.Option("--k", help="Hidden rows to keep; all if absent.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(dir_okay=False, writable=True, help="Write the hidden state here (.npy)."),
    ] = None,
    prompt_template: Annotated[
        str | None, typer.Option(help="Prompt; each {task} is replaced by the task.")
    ] = None,
    chat_template: Annotated[str | None, typer.Option(help="auto, none or qwen.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate.")] = None,
    do_sample: Annotated[
        bool | None, typer.Option("--do-sample/--greedy", help="Sample, or decode greedily.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 means greedy decoding.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus mass.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Most tokens kept; 0 keeps all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats an answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="The plan ends before this text; may be repeated.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Longest silence while waiting for the answer, in seconds.")
    ] = DEFAULT_TIMEOUT_S,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="LATENTWIRE_API_KEY", help="Key, where the service wants one."),
    ] = None,
) -> None:
    """Ask for the plan of one task; print it, the latent's shape and the usage."""
    options = {
        "prompt_template": prompt_template,
        "chat_template": chat_template,
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or None,
    }
    # What was not given is left to the service; what was is checked by the request's own model.
    given = cast(PlanOptions, {name: value for name, value in options.items() if value is not None})
    if output is not None:
        _check_output(output)
    try:
        with Client(url, timeout_s=timeout, api_key=api_key) as client:
            plan = client.plan_latent(task, k=k, **given)
        _print_plan(plan)
        if output is not None:
            _save(plan.hidden_state, output)
    except InvalidArgumentError as error:
        raise _exit_with(error, EXIT_USAGE) from error
    except (LatentwireError, OSError) as error:
        raise _exit_with(error, EXIT_FAILED) from error


def _print_plan(plan: PlanLatent) -> None:
    usage = plan.usage
    typer.echo(plan.plan)
    typer.echo("")
    typer.echo(f"hidden_state: {list(plan.hidden_state.shape)} float32")
    typer.echo(
        f"usage: {usage.prompt_tokens} prompt tokens, {usage.completion_tokens} completion tokens, "
        f"{usage.latent_steps} latent steps; finish_reason {plan.finish_reason}, seed {plan.seed}"
    )


def _check_output(path: Path) -> None:
    """Exit where a file cannot be made: not only after minutes of generation."""
    try:
        # Whether a file that is there can be written, typer has checked.
        if not path.exists():
            # Made and gone: permissions alone do not tell, not to root nor on a read-only disk.
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        typer.echo(f"latentwire: --output: {path}: {error.strerror}", err=True)
        raise typer.Exit(EXIT_USAGE) from error


def _save(hidden_state: npt.NDArray[np.float32], path: Path) -> None:
    # Through an open file: numpy would add ".npy" to a name that lacks it.
    with path.open("wb") as file:
        np.save(file, hidden_state)
    typer.echo(f"saved: {path}")


def _forward(command: ExtraCommand, args: list[str]) -> None:
    try:
        status = run_extra_command(command, args)
    except MissingDependencyError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_USAGE) from error
    raise typer.Exit(status)


def _exit_with(error: Exception, status: int) -> typer.Exit:
    """Say in one line on stderr what went wrong; returns the exit to raise."""
    typer.echo(f"latentwire: {' '.join(str(error).split())}", err=True)
    return typer.Exit(status)
