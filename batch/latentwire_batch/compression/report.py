"""The last lines of `latentwire compress`, and its exit status."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from latentwire_batch.compression.outcome import STEP
from latentwire_batch.compression.rewriting import Written
from latentwire_batch.console import Console
from latentwire_batch.exit_status import ExitStatus
from latentwire_batch.locations import shown_path
from latentwire_batch.output.durable import read_json
from latentwire_batch.output.layout import OutputLayout


def report_rewritten(
    console: Console, written: Written, losses: Mapping[str, int], output_dir: Path
) -> ExitStatus:
    """State what was written.

    Args:
        console: for the report.
        written: by the second pass.
        losses: rows that are left out, by code.
        output_dir: as the user gave it.
    """
    if losses:
        console.say(f"{written.rows} rows are written; {written.lost.rows} are left out")
        for code, count in losses.items():
            console.say(f"{count} failed with {code}: failures.jsonl has the reasons")
    else:
        console.say(f"all {written.rows} rows are written")
    console.say(f"the dataset is in {shown_path(output_dir)}")
    return _status(written.lost.rows)


def report_nothing_to_do(console: Console, layout: OutputLayout) -> ExitStatus:
    """State that an earlier run wrote the dataset."""
    manifest = read_json(layout.manifest) or {}
    num_lost = int(manifest[STEP].get("left_out", 0))
    left_out = f"; {num_lost} are left out: see failures.jsonl" if num_lost else ""
    console.say(f"nothing to do: all rows are already compressed{left_out}")
    return _status(num_lost)


def _status(num_lost: int) -> ExitStatus:
    return ExitStatus.SOME_ROWS_FAILED if num_lost else ExitStatus.ALL_ROWS
