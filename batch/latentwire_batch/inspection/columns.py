"""Facts and problems of matrix columns: number formats, and columns besides the latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latentwire_batch.dataset.schema import LATENT_COLUMN
from latentwire_batch.dataset.stored_matrix import StoredMatrix
from latentwire_batch.inspection.statistics import Inspection


def column_facts(
    inspected: str, matrices: Sequence[StoredMatrix], others: Mapping[StoredMatrix, Inspection]
) -> dict[str, str]:
    """Return what is to be shown besides the facts of a dataset of plain float32 latents.

    Args:
        inspected: the column whose matrices are shown as latents.
        matrices: all matrix columns.
        others: inspections of the matrix columns besides it.
    """
    found: dict[str, str] = {}
    if inspected != LATENT_COLUMN:
        found["inspected column"] = f"{inspected}, because there is no {LATENT_COLUMN}"
    for matrix in matrices:
        if matrix.name == inspected and matrix.storage.dtype != "float32":
            found["number format"] = _number_format(matrix)
    for matrix, inspection in others.items():
        widths = ", ".join(map(str, sorted(inspection.widths))) or "none"
        found[f"column {matrix.name}"] = (
            f"{_number_format(matrix)}; {inspection.num_hidden_rows:,} rows, width {widths}"
        )
    return found


def column_problems(others: Mapping[StoredMatrix, Inspection]) -> list[str]:
    """Name the problems of the matrix columns besides the latent; empty for sound ones."""
    found: list[str] = []
    for matrix, inspection in others.items():
        rows = ", ".join(map(str, inspection.bad_rows))
        if inspection.num_nan or inspection.num_infinite:
            found.append(
                f"column {matrix.name} holds values that are not finite, first in rows {rows}"
            )
        elif inspection.num_ragged:
            found.append(
                f"column {matrix.name} holds matrices whose rows differ in length, first in rows "
                f"{rows}"
            )
    return found


def _number_format(matrix: StoredMatrix) -> str:
    storage = matrix.storage
    return storage.dtype if storage.rotation is None else f"{storage.dtype}, rotated"
