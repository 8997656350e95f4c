"""`latentwire inspect`: shows whether a stored dataset is fit to train on."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console
from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from latentwire.settings_flags import name_variables
from latentwire.terminal import replace_unencodable
from latentwire_batch.console import Console
from latentwire_batch.dataset.reader import (
    dataset_bytes,
    locate,
    stored_declaration,
    stored_matrices,
    stored_rows,
)
from latentwire_batch.dataset.schema import LATENT_COLUMN
from latentwire_batch.dataset.stored_matrix import StoredMatrix
from latentwire_batch.errors import BatchError, InputError, StorageError, storage_error
from latentwire_batch.exit_status import ExitStatus, status_of
from latentwire_batch.flags import parse_settings
from latentwire_batch.inspection.columns import column_facts, column_problems
from latentwire_batch.inspection.findings import (
    Origin,
    facts,
    length_histogram,
    norm_profile,
    problems,
)
from latentwire_batch.inspection.html import Report, build_page
from latentwire_batch.inspection.statistics import inspect_rows
from latentwire_batch.inspection.terminal import show
from latentwire_batch.output.layout import DATA_NAME, FAILURES_NAME, HF_DATASET_NAME, MANIFEST_NAME

_MAX_NORM_BARS = 16


class InspectSettings(BaseSettings):
    """One inspection: flags, else `LATENTWIRE_INSPECT_*` variables, else defaults."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_INSPECT_", env_ignore_empty=True, frozen=True
    )

    path: CliPositionalArg[Path] = Field(
        description="Output of collect, a Parquet file, or a save_to_disk directory."
    )
    html: Path | None = Field(
        default=None, description="Write a report to this file: one HTML file that loads nothing."
    )


def main(args: list[str]) -> int:
    """Inspect one dataset.

    Args:
        args: the command line after `latentwire inspect`.

    Returns:
        0 for a sound dataset; 1 for one with problems; 2 for bad usage, or when it is no dataset.
    """
    replace_unencodable()
    console = Console(sys.stderr, "latentwire inspect")
    try:
        settings = parse_settings(
            InspectSettings,
            args,
            prog="latentwire inspect",
            description="Inspect a dataset of latents: lengths, norms, values that are not finite.",
        )
        return _inspect(settings.path, settings.html)
    except BatchError as error:
        console.say(name_variables(str(error), InspectSettings, args))
        return status_of(error)
    except SystemExit as request:
        # argparse ends this way after --help.
        return int(request.code or 0)


def _inspect(path: Path, html: Path | None) -> int:
    try:
        place = locate(path)
        matrices = stored_matrices(place)
        column = _inspected_column(matrices)
        inspection = inspect_rows(stored_rows(place, column=column))
        others = {
            matrix: inspect_rows(stored_rows(place, column=matrix.name))
            for matrix in matrices
            if matrix.name != column
        }
        declared = stored_declaration(place)
    except InputError as error:
        raise InputError(f"PATH: {error}") from error
    origin = Origin(_manifest(path) or declared, _num_failures(path))
    found = facts(inspection, dataset_bytes(place), origin)
    found |= column_facts(column, matrices, others)
    found_problems = problems(inspection, origin) + column_problems(others)
    lengths = length_histogram(inspection)
    norms = norm_profile(inspection.norms.means, _MAX_NORM_BARS)
    show(rich.console.Console(), found, lengths, norms, found_problems)
    if html is not None:
        # The name alone: readers of the report must not learn the path.
        title = f"Dataset {path.resolve().name}"
        _write(html, build_page(Report(title, found, lengths, found_problems, inspection)))
    return ExitStatus.FAILED if found_problems else ExitStatus.ALL_ROWS


def _inspected_column(matrices: Sequence[StoredMatrix]) -> str:
    """Return the column whose matrices are shown as latents: the first one in place of a latent."""
    names = [matrix.name for matrix in matrices]
    return LATENT_COLUMN if LATENT_COLUMN in names or not names else names[0]


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # A file or directory alone has none.
        return None
    return value if isinstance(value, dict) else None


def _num_failures(path: Path) -> int:
    """Count the rows in the list of failures of an output, or next to one of its files."""
    directory = path.parent if path.name in (DATA_NAME, HF_DATASET_NAME) else path
    try:
        with (directory / FAILURES_NAME).open("rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError:
        return 0


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--html: {storage_error('cannot be written', error)}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
