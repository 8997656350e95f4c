"""`latentwire fit-bridge`: checks, loads, fits, scores and writes one bridge."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from latentwire.settings_flags import FlagError, parse_settings
from latentwire.terminal import replace_unencodable
from latentwire_service.bridges.fitting.settings import FitSettings
from latentwire_service.engine.errors import EngineError
from latentwire_service.engine.hf.cpu.cpu_tuning import drop_unreadable
from latentwire_service.engine.seams.bridge import BridgeError

_COMMAND = "latentwire fit-bridge"
_FAILED, _BAD_USAGE = 1, 2


def main(args: Sequence[str]) -> int:
    """Fit a bridge.

    Args:
        args: the command line after `latentwire fit-bridge`.

    Returns:
        0 when the bridge is written, 1 when the disk failed, 2 for bad settings, a dataset or a
        model that cannot be used, 130 after Ctrl-C: the same command continues.
    """
    replace_unencodable()
    # One letter, as in other tools that write one output.
    words = ["--output-dir" if word == "-o" else word for word in args]
    try:
        settings = parse_settings(
            FitSettings,
            words,
            _COMMAND,
            "Fit a bridge: hidden rows of a dataset to input embeddings of a model, which stays as "
            "it is.",
        )
    except FlagError as error:
        return _say(str(error), _BAD_USAGE)
    except SystemExit as request:
        # argparse ends this way after --help.
        return int(request.code or 0)
    for name in drop_unreadable(os.environ):
        _write_line(f"{name} is ignored: it is not a list of CPUs, such as 0-3,8")
    # torch and transformers take seconds to import: wrong flags are reported before.
    from latentwire_service.bridges.fitting.fit import fit

    try:
        fit(settings, _write_line)
    except BridgeError as error:
        return _say("\n".join(filter(None, [str(error), error.hint])), _BAD_USAGE)
    except EngineError as error:
        return _say(" ".join(str(error).split()), _BAD_USAGE)
    except OSError as error:
        return _say(f"--output-dir: cannot be written: {error.strerror}", _FAILED)
    except KeyboardInterrupt:
        return _say("interrupted; the same command continues", 130)
    return 0


def _say(line: str, status: int) -> int:
    _write_line(line)
    return status


def _write_line(line: str) -> None:
    sys.stderr.write(f"{_COMMAND}: {line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
