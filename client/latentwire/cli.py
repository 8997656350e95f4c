"""The `latentwire` command: finds the subcommand and hands it its arguments."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from latentwire.errors import MissingDependencyError
from latentwire.subcommands import (
    COLLECT,
    COMPRESS,
    EVALUATE,
    FIT_BRIDGE,
    FIT_COMPRESSOR,
    INSPECT,
    MERGE,
    PLAN,
    SERVE,
    Subcommand,
    run_subcommand,
)
from latentwire.terminal import discard_output, replace_unencodable
from latentwire.version import VERSION

EXIT_FAILED = 1
EXIT_USAGE = 2

app = typer.Typer(
    help="Plans as latents: serve a model, plan a task, collect and inspect datasets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class ForwardingCommand(TyperCommand):
    """A command that parses nothing: the subcommand's own parser gets all arguments.

    That includes `--help` and `--`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave the arguments in the context as typed."""
        ctx.args = list(args)
        return []


def main() -> None:
    """Run the command."""
    replace_unencodable()
    try:
        app(prog_name="latentwire")
    except OSError as error:
        # A file's error names the file; this one is of the standard output.
        if error.filename is not None:
            raise
        discard_output()
        sys.stderr.write(f"latentwire: the output cannot be written: {error.strerror}\n")
        sys.exit(EXIT_FAILED)


def _print_version(is_given: bool) -> None:
    if is_given:
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
    """Give the options before the subcommand a place."""


@app.command("serve", cls=ForwardingCommand, help="Serve a model over HTTP (extra: service).")
def _serve(context: typer.Context) -> None:
    _forward(SERVE, context.args)


@app.command("plan", cls=ForwardingCommand, help="Plan one task with a running service.")
def _plan(context: typer.Context) -> None:
    _forward(PLAN, context.args)


@app.command("collect", cls=ForwardingCommand, help="Make a dataset of latents (extra: batch).")
def _collect(context: typer.Context) -> None:
    _forward(COLLECT, context.args)


@app.command(
    "compress",
    cls=ForwardingCommand,
    help="Write a dataset again with compressed latents (extra: batch).",
)
def _compress(context: typer.Context) -> None:
    _forward(COMPRESS, context.args)


@app.command(
    "merge",
    cls=ForwardingCommand,
    help="Join the shards of a collection to one dataset (extra: batch).",
)
def _merge(context: typer.Context) -> None:
    _forward(MERGE, context.args)


@app.command("inspect", cls=ForwardingCommand, help="Inspect a dataset of latents (extra: batch).")
def _inspect(context: typer.Context) -> None:
    _forward(INSPECT, context.args)


@app.command(
    "fit-bridge",
    cls=ForwardingCommand,
    help="Fit a bridge from latents to a model's input embeddings (extra: service).",
)
def _fit_bridge(context: typer.Context) -> None:
    _forward(FIT_BRIDGE, context.args)


@app.command(
    "fit-compressor",
    cls=ForwardingCommand,
    help="Fit a compressor to the latents of a dataset (extra: service).",
)
def _fit_compressor(context: typer.Context) -> None:
    _forward(FIT_COMPRESSOR, context.args)


@app.command(
    "evaluate",
    cls=ForwardingCommand,
    help="Measure what messages through a bridge carry (extra: batch).",
)
def _evaluate(context: typer.Context) -> None:
    _forward(EVALUATE, context.args)


def _forward(command: Subcommand, args: list[str]) -> None:
    try:
        status = run_subcommand(command, args)
    except MissingDependencyError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_USAGE) from error
    raise typer.Exit(status)
