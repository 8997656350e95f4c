"""Shared by the two classic command lines: flags with underscores, and ranks from `torchrun`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from latentwire_batch.collect import collect
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.errors import UsageError
from latentwire_batch.exit_status import run_to_exit_status
from latentwire_batch.flags import Parser, make_settings
from latentwire_batch.ranks.rank import Rank, rank_of
from latentwire_batch.shards.choice import choose_shard
from latentwire_batch.shards.shard import Shard
from latentwire_batch.tasks.arrow_files import is_split_directory

_SHARD_VARIABLE = "LATENTWIRE_COLLECT_SHARD"

_FIELD_DEFAULT = object()

# From parsed arguments to the settings that are no flag's value; may open resources that live as
# long as the run.
Translate = Callable[[argparse.Namespace, ExitStack], dict[str, Any]]


class ClassicParser(Parser):
    """A parser whose flags set fields of `CollectSettings`, with the classic names and defaults.

    Args:
        prog: name of the command.
        description: first lines of the help text.
    """

    def __init__(self, prog: str, description: str) -> None:
        self._required: dict[str, str] = {}
        self._flags: dict[str, str] = {}
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def add_argument(self, *names: str, required: bool = False, **options: Any) -> Any:
        """Add a flag as argparse does; `parse_flags` reports a required one that is missing."""
        action = super().add_argument(*names, **options)
        if required:
            self._required[action.dest] = names[0]
        return action

    def parse_flags(self, args: list[str]) -> argparse.Namespace:
        """Parse a command line.

        Raises:
            UsageError: a flag is wrong or missing.
        """
        given = self.parse_args(args)
        missing = [flag for name, flag in self._required.items() if getattr(given, name) is None]
        if missing:
            raise UsageError("; ".join(f"{flag}: required" for flag in missing))
        return given

    def add_setting(
        self,
        name: str,
        flag: str | None = None,
        *,
        default: object = _FIELD_DEFAULT,
        help: str | None = None,
        **options: Any,
    ) -> None:
        """Add a flag for one setting.

        Args:
            name: field of `CollectSettings`.
            flag: the flag; the field's name if absent.
            default: classic default; the field's own if absent.
            help: classic help text; the field's description if absent.
            **options: of argparse.
        """
        field = CollectSettings.model_fields[name]
        self._flags[name] = flag or f"--{name}"
        text = help or field.description or ""
        if default is _FIELD_DEFAULT:
            default = None if field.is_required() else field.default
        if default is not None and default is not False:
            text += " (default: %(default)s)"
        self.add_argument(self._flags[name], dest=name, default=default, help=text, **options)

    def add_switch(self, flag: str, help: str) -> None:
        """Add a flag that means true when it has no value."""
        self.add_argument(flag, default=False, help=help, **_SWITCH)

    def add_model_settings(self, flag: str) -> None:
        """Add the flags of the model, which `flag` names."""
        self.add_setting(
            "model",
            flag,
            required=True,
            default=None,
            help="Hub id, local directory or .gguf file.",
        )
        self.add_setting(
            "dtype",
            "--torch_dtype",
            choices=("bf16", "fp16", "fp32"),
            help="Compute dtype; absent: bf16 on a GPU, fp32 on the CPU.",
        )
        self.add_setting(
            "trust_remote_code",
            help="Run code that is part of a hub model. Only for models that you trust.",
            **_SWITCH,
        )

    def add_task_settings(self) -> None:
        """Add the flags that name the fields of a record that hold the task and its id."""
        # No default, so that `check_task_place` knows whether the flag was given.
        self.add_setting(
            "task_field",
            default=None,
            help='Field that holds the task; "" with --conversations_index. (default: task)',
        )
        self.add_setting(
            "conversations_index",
            help="Take turn N of conversations or messages as the task, counted from 0. A system "
            "message is a turn too.",
        )
        self.add_setting("id_field")

    def flag_of(self, name: str) -> str:
        """Return the flag that sets a field, for messages."""
        return self._flags.get(name, f"--{name}")

    def settings_of(self, given: argparse.Namespace) -> dict[str, Any]:
        """Return the settings that the flags give."""
        return {name: getattr(given, name) for name in self._flags}


def run_classic(parser: ClassicParser, args: list[str], translate: Translate) -> int:
    """Run a classic command line: alone, or as one rank of several.

    Args:
        parser: of its flags.
        args: the command line without the program's name.
        translate: returns the settings that are no flag's value.

    Returns:
        The same exit statuses as `latentwire collect`.
    """
    console = Console(sys.stderr, parser.prog)
    # A launcher's SIGTERM ends the run like Ctrl-C, also while nothing asynchronous runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def run() -> int:
        rank = rank_of(os.environ, os.getppid())
        with ExitStack() as opened:
            given = parser.parse_flags(args)
            settings = _settings(parser, given, translate(given, opened))
            console = _console_of(rank, parser.prog, given.disable_tqdm)
            return collect(settings, console, rank, _shard(settings, console, rank))

    return run_to_exit_status(run, console, args)


def truth(text: str) -> bool:
    """Parse the value of a flag that is true or false."""
    match text.lower():
        case "true" | "1" | "yes":
            return True
        case "false" | "0" | "no":
            return False
        case _:
            raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


_SWITCH: dict[str, Any] = {"nargs": "?", "const": True, "type": truth, "metavar": "true|false"}


def check_task_place(given: argparse.Namespace) -> None:
    """Check that the task is in exactly one place.

    Raises:
        UsageError: when it is nowhere, or in two places.
    """
    if given.conversations_index is None:
        if given.task_field == "":
            raise UsageError("--task_field: is empty, and --conversations_index is not given")
    elif given.task_field:
        raise UsageError('--conversations_index: needs --task_field ""')


def split_directory(path: Path, split: str | None) -> Path:
    """Return the directory of one split, if `path` holds several."""
    return path / split if split is not None and is_split_directory(path) else path


def _settings(
    parser: ClassicParser, given: argparse.Namespace, further: dict[str, Any]
) -> CollectSettings:
    values = {**parser.settings_of(given), **further}
    known = {name: value for name, value in values.items() if value is not None}
    return make_settings(CollectSettings, known, parser.flag_of)


def _shard(settings: CollectSettings, console: Console, rank: Rank) -> Shard | None:
    """Choose the shard. Only LATENTWIRE_COLLECT_SHARD makes one: these commands have no flag."""
    if settings.shard is None:
        return None
    choice = choose_shard(settings.shard, os.environ, _SHARD_VARIABLE)
    if choice.notice is not None and rank.index == 0:
        console.say(choice.notice)
    return choice.shard


def _console_of(rank: Rank, command: str, is_quiet: bool) -> Console:
    if rank.count == 1:
        return Console(sys.stderr, command, shows_progress=not is_quiet)
    # Several processes share one terminal: no bars, and progress lines of the first one only.
    is_shown = rank.index == 0 and not is_quiet
    return Console(sys.stderr, f"{command} [rank {rank.index}]", is_shown, draws_bar=False)
