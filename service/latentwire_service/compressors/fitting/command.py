"""`latentwire fit-compressor`: fits, scores and writes one compressor."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from latentwire_service.compressors.fitting.settings import CompressorSettings
from latentwire_service.fitting.command import Say, run_fit


def main(args: Sequence[str]) -> int:
    """Fit a compressor.

    Args:
        args: the command line after `latentwire fit-compressor`.

    Returns:
        The exit status, as `run_fit` returns it.
    """
    return run_fit(
        "latentwire fit-compressor",
        "Fit a compressor: the latents of a dataset to fewer or smaller rows.",
        CompressorSettings,
        _fit,
        args,
    )


def _fit(settings: CompressorSettings, say: Say) -> None:
    # torch takes seconds to import: wrong flags are reported before.
    from latentwire_service.compressors.fitting.fit import fit

    fit(settings, say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
