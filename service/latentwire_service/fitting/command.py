"""What the command lines of all fits share: flags, errors as one line, exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from latentwire.interrupts import interrupted_by_sigterm
from latentwire.settings_flags import FlagError, parse_settings
from latentwire.terminal import replace_unencodable
from latentwire_service.engine.errors import EngineError
from latentwire_service.engine.hf.cpu.cpu_tuning import drop_unreadable
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.fetching import local_dataset
from latentwire_service.fitting.settings import DatasetSettings

_FAILED, _BAD_USAGE, _INTERRUPTED = 1, 2, 130

S = TypeVar("S", bound=DatasetSettings)
Say = Callable[[str], None]


def run_fit(
    command: str,
    description: str,
    settings_class: type[S],
    fit: Callable[[S, Say], None],
    args: Sequence[str],
) -> int:
    """Fit something.

    Args:
        command: as typed, such as `latentwire fit-bridge`.
        description: of the command, for `--help`.
        settings_class: of its settings.
        fit: gets the settings, and a function that writes a line for the user.
        args: the command line after the command.

    Returns:
        0 when the result is written, 1 when the disk failed, 2 for bad settings, a dataset or a
        model that cannot be used, 130 after Ctrl-C or SIGTERM: the same command continues.
    """

    def write_line(line: str) -> None:
        sys.stderr.write(f"{command}: {line}\n")

    def say(line: str, status: int) -> int:
        write_line(line)
        return status

    replace_unencodable()
    try:
        settings = parse_settings(settings_class, args, command, description)
    except FlagError as error:
        return say(str(error), _BAD_USAGE)
    except SystemExit as request:
        # argparse ends this way after --help.
        return int(request.code or 0)
    for name in drop_unreadable(os.environ):
        write_line(f"{name} is ignored: it is not a list of CPUs, such as 0-3,8")
    try:
        with (
            interrupted_by_sigterm(),
            local_dataset(settings.dataset, settings.split, write_line) as dataset,
        ):
            fit(settings.model_copy(update={"dataset": str(dataset)}), write_line)
    except BridgeError as error:
        return say("\n".join(filter(None, [str(error), error.hint])), _BAD_USAGE)
    except EngineError as error:
        return say(" ".join(str(error).split()), _BAD_USAGE)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return say(f"--output-dir: cannot be written: {reason}", _FAILED)
    except KeyboardInterrupt:
        return say("interrupted; the same command continues", _INTERRUPTED)
    return 0
