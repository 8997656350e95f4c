"""`latentwire inspect`: shows whether a stored dataset is fit to train on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import rich.console
from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from latentwire.settings_flags import name_variables
from latentwire.terminal import replace_unencodable
from latentwire_batch.console import Console
from latentwire_batch.dataset.files import DatasetFiles, locate, read_manifest_json, root_of_file
from latentwire_batch.dataset.reader import (
    dataset_bytes,
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
from latentwire_batch.inspection.verification import verify_files
from latentwire_batch.locations import GivenPlace, Place
from latentwire_batch.output.layout import FAILURES_NAME
from latentwire_batch.tasks.arrow_files import input_errors

_MAX_NORM_BARS = 16


class InspectSettings(BaseSettings):
    """One inspection: flags, else `LATENTWIRE_INSPECT_*` variables, else defaults."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_INSPECT_", env_ignore_empty=True, frozen=True
    )

    path: CliPositionalArg[GivenPlace] = Field(
        description="Output of collect, a Parquet file, or a save_to_disk directory; also a URL."
    )
    split: str | None = Field(
        default=None, description="The only split to inspect, of a dataset that has several."
    )
    verify: bool = Field(
        default=False,
        description="Also read the files whole, and compare them with the checksums in "
        "manifest.json.",
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
        return _inspect(settings, console)
    except BatchError as error:
        console.say(name_variables(str(error), InspectSettings, args))
        return status_of(error)
    except SystemExit as request:
        # argparse ends this way after --help.
        return int(request.code or 0)


def _inspect(settings: InspectSettings, console: Console) -> int:
    try:
        checks, differences = _verified(settings)
        try:
            return _show(settings, checks, differences)
        except InputError:
            if not differences:
                raise
    except InputError as error:
        raise InputError(f"PATH: {error}") from error
    # They say why the rows cannot be read.
    for difference in differences:
        console.say(f"PATH: {difference}")
    return ExitStatus.FAILED


def _show(settings: InspectSettings, checks: Mapping[str, str], differences: list[str]) -> int:
    path, html = settings.path, settings.html
    files = locate(path, settings.split)
    matrices = stored_matrices(files)
    column = _inspected_column(matrices)
    inspection = inspect_rows(stored_rows(files, column=column))
    others = {
        matrix: inspect_rows(stored_rows(files, column=matrix.name))
        for matrix in matrices
        if matrix.name != column
    }
    declared = stored_declaration(files)
    splits = _split_facts(files)
    origin = _origin(settings, files, declared)
    found = facts(inspection, dataset_bytes(files), origin) | splits
    found |= column_facts(column, matrices, others) | dict(checks)
    found_problems = problems(inspection, origin) + column_problems(others) + differences
    lengths = length_histogram(inspection)
    norms = norm_profile(inspection.norms.means, _MAX_NORM_BARS)
    show(rich.console.Console(), found, lengths, norms, found_problems)
    if html is not None:
        # The name alone: readers of the report must not learn the path.
        title = f"Dataset {path.resolve().name}"
        _write(html, build_page(Report(title, found, lengths, found_problems, inspection)))
    return ExitStatus.FAILED if found_problems else ExitStatus.ALL_ROWS


def _verified(settings: InspectSettings) -> tuple[dict[str, str], list[str]]:
    """Compare the files with the manifest, if that is wanted.

    Before their rows are read: a damaged file may be unreadable.
    """
    if not settings.verify:
        return {}, []
    given = root = settings.path
    try:
        files = locate(given)
        root = root_of_file(given) if files.paths == (given,) else files.root
    except InputError:
        # Files may be missing. The manifest names them, if there is one.
        if read_manifest_json(root) is None:
            raise
    return verify_files(root, read_manifest_json(root), given)


def _inspected_column(matrices: Sequence[StoredMatrix]) -> str:
    """Return the column whose matrices are shown as latents: the first one in place of a latent."""
    names = [matrix.name for matrix in matrices]
    return LATENT_COLUMN if LATENT_COLUMN in names or not names else names[0]


def _split_facts(files: DatasetFiles) -> dict[str, str]:
    """State the rows of each split; empty where the files name none."""
    with input_errors():
        return {
            f"split {name}": f"{part.num_rows():,} rows"
            for name, part in files.by_split()
            if name is not None
        }


def _origin(
    settings: InspectSettings, files: DatasetFiles, declared: Mapping[str, Any] | None
) -> Origin:
    """Return what is known of the rows; a manifest counts those of all splits."""
    manifest = read_manifest_json(files.root)
    is_all = settings.split is None and settings.path == files.root
    rows = None if settings.split is None else _rows_of_split(manifest or {}, settings.split)
    failures = _num_failures(files.root, rows)
    return Origin(manifest if manifest is not None and is_all else declared, failures)


def _rows_of_split(manifest: Mapping[str, Any], name: str) -> range:
    """Return the indices of a split's rows in the input; empty where the manifest names none."""
    start = 0
    with suppress(LookupError, TypeError, AttributeError):
        for split in manifest["settings"]["splits"]:
            end = start + split["num_rows"]
            if split["name"] == name:
                return range(start, end)
            start = end
    return range(0)


def _num_failures(root: Place, rows: range | None) -> int:
    """Count the rows in the list of failures of a dataset.

    Args:
        root: the directory that may hold the list.
        rows: to count; None: all.
    """
    try:
        with (root / FAILURES_NAME).open("rb") as file:
            lines = (line for line in file if line.strip())
            return sum(rows is None or json.loads(line)["row"] in rows for line in lines)
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--html: {storage_error('cannot be written', error)}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
