"""The columns of a rewritten dataset: those that pass through, and the matrices that are new."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from latentwire.number_formats import EncodedRows
from latentwire.storage import DECLARATION_KEY, scale_column
from latentwire_batch.compression.source import FEATURES_KEY, SourceDataset
from latentwire_batch.compression.stored_form import LatentEncoder, StoredForm
from latentwire_batch.dataset.matrices import Column, MatrixBuffer, MatrixColumn
from latentwire_batch.dataset.schema import COLUMNS, EXTRA_COLUMNS, LATENT_COLUMN
from latentwire_batch.errors import UsageError

_PASSING = "as in the dataset that was compressed"


@dataclass(frozen=True)
class RewrittenSchema:
    """The schema of the new files: see `FileSchema`."""

    arrow: pa.Schema
    columns: Sequence[Column]
    features: Mapping[str, Any] | None
    matrices: Sequence[MatrixColumn]


@dataclass(frozen=True)
class RewrittenColumns:
    """The columns of a rewritten dataset.

    Attributes:
        source: the dataset that is read.
        matrices: that are new.
        passing: names of the columns that stay as they are.
    """

    source: SourceDataset
    matrices: tuple[MatrixColumn, ...]
    passing: frozenset[str]

    @classmethod
    def of(
        cls, source: SourceDataset, encoder: LatentEncoder, form: StoredForm
    ) -> RewrittenColumns:
        """Decide which columns pass through.

        Args:
            source: the dataset that is read.
            encoder: makes the new matrices.
            form: that is wanted.

        Raises:
            UsageError: when a new column would have the name of one that passes through.
        """
        latent = {LATENT_COLUMN, scale_column(LATENT_COLUMN)}
        passing = frozenset(source.schema.names) - (set() if form.keeps_latent else latent)
        columns = cls(source, encoder.columns, passing)
        for name in columns.made:
            if name in passing:
                raise UsageError(f"--compressor: the dataset already has a column {name}")
        return columns

    @cached_property
    def made(self) -> Mapping[str, Column]:
        """The new columns by name, those of scales included."""
        return {column.name: column for matrix in self.matrices for column in matrix.columns}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The names of all columns: the new ones come behind the latent, or in its place."""
        names: list[str] = []
        for name in self.source.schema.names:
            names += [name] if name in self.passing else []
            names += self.made if name == LATENT_COLUMN else []
        return tuple(names)

    @property
    def described(self) -> list[Column]:
        """All columns in order, with their meanings."""
        known = {column.name: column.meaning for column in (*COLUMNS, *EXTRA_COLUMNS)}
        fields = self.source.schema
        return [
            self.made.get(name) or Column(name, fields.field(name).type, known.get(name, _PASSING))
            for name in self.order
        ]

    def schema(self, declaration: str) -> RewrittenSchema:
        """Return the schema of the new files.

        Args:
            declaration: JSON text for the files' metadata.
        """
        fields = [self._field(name) for name in self.order]
        metadata = dict(self.source.schema.metadata or {})
        metadata[DECLARATION_KEY] = declaration.encode()
        if FEATURES_KEY in metadata:
            metadata[FEATURES_KEY] = json.dumps({"info": {"features": self.features}}).encode()
            if self.features is None:
                del metadata[FEATURES_KEY]
        arrow = pa.schema(fields, metadata=metadata)
        return RewrittenSchema(arrow, self.described, self.features, self._all_matrices)

    @cached_property
    def features(self) -> dict[str, Any] | None:
        """The features as `datasets` writes them; None when it is to infer them."""
        stated = self.source.features
        features: dict[str, Any] = {}
        try:
            for column in self.described:
                if stated is not None and column.name in self.passing:
                    features[column.name] = stated[column.name]
                else:
                    features[column.name] = column.feature
        except LookupError:
            # A type that this package never writes, in a dataset that states no features.
            return None
        return features

    def arrays(self, rows: Sequence[Mapping[str, EncodedRows]]) -> dict[str, pa.Array]:
        """Return the new columns of a few rows, by name.

        Args:
            rows: the matrices of each row, by column.
        """
        arrays: dict[str, pa.Array] = {}
        for matrix in self.matrices:
            encoded = [row[matrix.name] for row in rows]
            buffer = MatrixBuffer(matrix, sum(one.values.nbytes for one in encoded))
            for one in encoded:
                buffer.add(matrix.shape_of(one)).fill(one)
            names = [column.name for column in matrix.columns]
            arrays |= dict(zip(names, buffer.arrays(), strict=True))
        return arrays

    @property
    def _all_matrices(self) -> list[MatrixColumn]:
        made = {matrix.name: matrix for matrix in self.matrices}
        passing = {matrix.name: matrix for matrix in self.source.matrices}
        found = (made.get(name) or passing.get(name) for name in self.order)
        return [matrix for matrix in found if matrix is not None]

    def _field(self, name: str) -> pa.Field:
        made = self.made.get(name)
        return self.source.schema.field(name) if made is None else pa.field(name, made.type)
