"""`latentwire fit-bridge`: checks, loads, fits, scores and writes one bridge."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from latentwire_service.bridges.fitting.settings import FitSettings
from latentwire_service.fitting.command import Say, run_fit


def main(args: Sequence[str]) -> int:
    """Fit a bridge.

    Args:
        args: the command line after `latentwire fit-bridge`.

    Returns:
        The exit status, as `run_fit` returns it.
    """
    return run_fit(
        "latentwire fit-bridge",
        "Fit a bridge: hidden rows of a dataset to input embeddings of a model, which stays as it "
        "is.",
        FitSettings,
        _fit,
        args,
    )


def _fit(settings: FitSettings, say: Say) -> None:
    # torch and transformers take seconds to import: wrong flags are reported before.
    from latentwire_service.bridges.fitting.fit import fit

    fit(settings, say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
