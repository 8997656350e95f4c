"""From the settings of a run to its matrix columns, and from an answer to what is stored of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from latentwire.number_formats import DEFAULT_ROTATION, NumberFormat, encode_rows, has_scales
from latentwire.storage import MatrixStorage
from latentwire_batch.dataset.matrices import MatrixColumn
from latentwire_batch.dataset.schema import latent_column
from latentwire_batch.run_settings import RunSettings
from latentwire_batch.tasks.results import FinishedRow


def matrix_columns(settings: RunSettings) -> tuple[MatrixColumn, ...]:
    """Return the matrix columns of a dataset.

    Args:
        settings: of a run whose model is known.
    """
    assert settings.model is not None
    dtype = settings.storage_dtype
    return (latent_column(MatrixStorage(dtype, settings.model.hidden_size, rotation_for(dtype))),)


def rotation_for(dtype: NumberFormat) -> int | None:
    """Return the seed of the rotation that stored rows of a number format have."""
    return DEFAULT_ROTATION if has_scales(dtype) else None


@dataclass(frozen=True)
class RowPreparation:
    """Makes what is stored of an answer; called on worker threads.

    Attributes:
        storage_dtype: number format of the stored rows.
    """

    storage_dtype: NumberFormat

    def __call__(self, finished: FinishedRow) -> FinishedRow:
        """Fill in the matrices of a row, in the order of `matrix_columns`.

        Raises:
            NumberFormatError: when a value does not fit the number format.
        """
        rotation = rotation_for(self.storage_dtype)
        encoded = encode_rows(finished.hidden_state, self.storage_dtype, rotation=rotation)
        return replace(finished, matrices=(encoded,))


def row_preparation(settings: RunSettings) -> Callable[[FinishedRow], FinishedRow] | None:
    """Return what prepares the rows of a run; None when they are stored as they come."""
    if settings.storage_dtype == "float32":
        return None
    return RowPreparation(settings.storage_dtype)
