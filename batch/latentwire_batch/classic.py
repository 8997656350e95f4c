"""What the two classic command lines share: flags with underscores, and ranks from `torchrun`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from latentwire_batch.collect import collect
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.errors import BatchError, UsageError
from latentwire_batch.exit_status import report_interrupted, status_of
from latentwire_batch.flags import Parser, make_settings
from latentwire_batch.ranks.rank import Rank, rank_of

# Flags of the commands by the setting that they give; a value that is absent stays the default.
FLAGS = {
    "model": "--model_name_or_path",
    "dataset": "--dataset_path",
    "output_dir": "--output_dir",
    "task_field": "--task_field",
    "conversations_index": "--conversations_index",
    "id_field": "--id_field",
    "prompt_template": "--prompt_template",
    "chat_template": "--chat_template",
    "max_new_tokens": "--max_new_tokens",
    "temperature": "--temperature",
    "top_p": "--top_p",
    "top_k": "--top_k",
    "do_sample": "--do_sample",
    "dtype": "--torch_dtype",
    "seed": "--seed",
    "trust_remote_code": "--trust_remote_code",
    "k": "--c",
}

# From parsed arguments to settings by field; may open what has to live as long as the run.
Translate = Callable[[argparse.Namespace, ExitStack], dict[str, Any]]


def run_classic(
    parser: Parser, args: list[str], translate: Translate, flags: Mapping[str, str] = FLAGS
) -> int:
    """Run a classic command line: alone, or as one rank of several.

    Args:
        parser: of its flags.
        args: the command line without the program's name.
        translate: gives the settings of the collection.
        flags: names the flags in messages.

    Returns:
        The same exit statuses as `latentwire collect`.
    """
    console = Console(sys.stderr, parser.prog)
    # Also while nothing asynchronous runs, a launcher's SIGTERM ends the run like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rank = rank_of(os.environ, os.getppid())
        with ExitStack() as opened:
            given = parser.parse_args(args)
            settings = make_settings(
                CollectSettings,
                {
                    name: value
                    for name, value in translate(given, opened).items()
                    if value is not None
                },
                lambda field: flags.get(field, "--" + field),
            )
            is_quiet = getattr(given, "disable_tqdm", False)
            return collect(settings, _console_of(rank, parser.prog, is_quiet), rank)
    except BatchError as error:
        console.say(str(error))
        return status_of(error)
    except KeyboardInterrupt:
        return report_interrupted(console)
    except SystemExit as request:
        # argparse ends this way after --help.
        return int(request.code or 0)


def truth(text: str) -> bool:
    """Parse the value of a flag that is true or false."""
    match text.lower():
        case "true" | "1" | "yes":
            return True
        case "false" | "0" | "no":
            return False
        case _:
            raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def add_switch(parser: Parser, flag: str, text: str) -> None:
    """Add a flag that means true when it has no value."""
    parser.add_argument(
        flag, nargs="?", const=True, default=False, type=truth, metavar="true|false", help=text
    )


def task_fields(task_field: str | None, conversations_index: int | None) -> dict[str, Any]:
    """Say where the task is: an empty `--task_field` leaves it to the conversations.

    Raises:
        UsageError: when it is nowhere, or in two places.
    """
    if conversations_index is None:
        if task_field == "":
            raise UsageError("--task_field: is empty, and --conversations_index is not given")
        return {"task_field": task_field}
    if task_field:
        raise UsageError('--conversations_index: needs --task_field ""')
    return {"conversations_index": conversations_index}


def split_directory(path: Path, split: str | None) -> Path:
    """Go into one split of a directory that holds several."""
    if split is not None and (path / "dataset_dict.json").is_file():
        return path / split
    return path


def _console_of(rank: Rank, command: str, is_quiet: bool) -> Console:
    if rank.count == 1:
        return Console(sys.stderr, command, shows_progress=not is_quiet)
    # Several processes write to one terminal: no bars, and of the lines only the first one's.
    is_shown = rank.index == 0 and not is_quiet
    return Console(sys.stderr, f"{command} [rank {rank.index}]", is_shown, draws_bar=False)
