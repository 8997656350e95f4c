"""`latentwire inspect`: a look at a stored dataset before somebody trains on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import rich.console

from latentwire_batch.console import Console
from latentwire_batch.dataset.reader import dataset_bytes, locate, stored_rows
from latentwire_batch.errors import BatchError, InputError, StorageError, storage_error
from latentwire_batch.exit_status import ExitStatus, status_of
from latentwire_batch.flags import Parser
from latentwire_batch.inspection.findings import facts, length_histogram, problems, thinned
from latentwire_batch.inspection.html import Report, build_page
from latentwire_batch.inspection.statistics import inspect_rows
from latentwire_batch.inspection.terminal import show
from latentwire_batch.output.layout import MANIFEST_NAME

_MAX_NORM_BARS = 16


def main(args: list[str]) -> int:
    """Inspect one dataset.

    Args:
        args: the command line after `latentwire inspect`.

    Returns:
        0 sound; 1 read, but something speaks against it; 2 bad usage or not such a dataset.
    """
    console = Console(sys.stderr, "latentwire inspect")
    try:
        given = build_parser().parse_args(args)
        return _inspect(given.path, given.html)
    except BatchError as error:
        console.say(str(error))
        return status_of(error)
    except SystemExit as request:
        # argparse ends this way after --help.
        return int(request.code or 0)


def build_parser() -> Parser:
    """Build the parser of the command's flags."""
    parser = Parser(
        prog="latentwire inspect",
        description="Look at a dataset of latents: lengths, norms, values that are not finite.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="Output of collect, a Parquet file, or a save_to_disk directory.",
    )
    parser.add_argument(
        "--html", type=Path, metavar="PATH", help="Write a report here: one file, loads nothing."
    )
    return parser


def _inspect(path: Path, html: Path | None) -> int:
    try:
        place = locate(path)
        inspection = inspect_rows(stored_rows(place))
    except InputError as error:
        raise InputError(f"PATH: {error}") from error
    found = facts(inspection, dataset_bytes(place), _manifest(path))
    against = problems(inspection)
    lengths = length_histogram(inspection)
    norms = thinned(inspection.norms.means, _MAX_NORM_BARS)
    show(rich.console.Console(), found, lengths, norms, against)
    if html is not None:
        # The name alone: where it lies is nobody's business who gets the report.
        title = f"Dataset {path.resolve().name}"
        _write(html, build_page(Report(title, found, lengths, against, inspection)))
    return ExitStatus.FAILED if against else ExitStatus.ALL_ROWS


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads((path / MANIFEST_NAME).read_text())
    except (OSError, ValueError):
        # A file alone has none.
        return None
    return value


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--html: {storage_error('cannot be written', error)}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
