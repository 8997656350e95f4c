"""The dataset that `latentwire compress` reads: where it is, what it says, and its identity."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from latentwire_batch.dataset.files import DatasetFiles, locate, read_manifest_json
from latentwire_batch.dataset.matrices import MatrixColumn
from latentwire_batch.dataset.reader import stored_declaration, stored_rows
from latentwire_batch.dataset.schema import LATENT_COLUMN
from latentwire_batch.dataset.stored_matrix import matrix_names, stored_matrix
from latentwire_batch.errors import InputError, UsageError
from latentwire_batch.locations import Place, RemotePath
from latentwire_batch.output.layout import FAILURES_NAME
from latentwire_batch.tasks.arrow_files import STATE_NAME, input_errors
from latentwire_batch.tasks.inputs import SplitRows

FEATURES_KEY = b"huggingface"
"""Under it, `datasets` keeps the features of a file in its metadata."""
_INFO_NAME = "dataset_info.json"
_FOOTER_END = struct.Struct("<I4s")
_PARQUET_MAGIC = b"PAR1"
_MAX_FOOTER_BYTES = 1 << 26


@dataclass(frozen=True)
class SourceDataset:
    """A stored dataset with full latents.

    Attributes:
        files: of the dataset.
        splits: the rows of each split; empty where the files name none.
        schema: of its files.
        num_rows: that it holds.
        sha256: of its schema, sizes and file descriptions; another dataset has another one.
        width: of its latents.
        manifest: of the output that it belongs to; None without one.
        declaration: what its files say about how they were made.
    """

    files: DatasetFiles
    splits: tuple[SplitRows, ...]
    schema: pa.Schema
    num_rows: int
    sha256: str
    width: int
    manifest: Mapping[str, Any] | None
    declaration: Mapping[str, Any]

    @classmethod
    def of(cls, path: Place) -> SourceDataset:
        """Open a dataset.

        Raises:
            InputError: when it cannot be read, or holds no latents.
        """
        files = locate(path)
        with input_errors():
            schema = files.schema
            counts = [(name, part.num_rows()) for name, part in files.by_split()]
            num_rows = sum(count for _, count in counts)
            sha256 = _digest(files, schema, num_rows)
        manifest = read_manifest_json(files.root)
        declaration = stored_declaration(files) or {}
        width = _width(files, declaration if manifest is None else manifest)
        splits = tuple(SplitRows(name, count) for name, count in counts if name is not None)
        return cls(files, splits, schema, num_rows, sha256, width, manifest, declaration)

    @property
    def failures(self) -> Place:
        """The list of rows that the collection left out; need not exist."""
        return self.files.root / FAILURES_NAME

    @property
    def features(self) -> Mapping[str, Any] | None:
        """The features that `datasets` recorded; None when it recorded none."""
        info = _json_object(self.files.paths[0] / _INFO_NAME)
        if info is None:
            try:
                info = json.loads((self.schema.metadata or {})[FEATURES_KEY])["info"]
            except (ValueError, LookupError, TypeError, RecursionError):
                return None
        return _part(info, "features") or None

    @property
    def latent_dtype(self) -> str:
        """The number format of the full latents."""
        return stored_matrix(self.schema, LATENT_COLUMN).storage.dtype

    @property
    def matrices(self) -> list[MatrixColumn]:
        """Its columns of matrices that say how they are stored."""
        found = []
        for name in matrix_names(self.schema):
            with suppress(InputError):
                found.append(MatrixColumn(name, stored_matrix(self.schema, name).storage))
        return found

    @property
    def latent_facts(self) -> dict[str, Any]:
        """What is known of the latents: see `fit.check_source`."""
        said = self.declaration if self.manifest is None else self.manifest
        model, latent = _part(said, "model"), _part(said, "latent")
        return {
            "hidden_size": self.width,
            **{name: model.get(name) for name in ("model", "revision")},
            **{name: latent.get(name) for name in ("layer", "normed")},
        }

    def refuse_output(self, output: Path) -> None:
        """Refuse an output that would replace what is read.

        Raises:
            UsageError: when one is inside of the other.
        """
        given = output.resolve()
        for path in self.files.paths:
            if isinstance(path, RemotePath):
                continue
            place = path.resolve()
            if given == place or given in place.parents:
                raise UsageError(
                    "--output-dir: is the dataset that is read; name another directory"
                )
            if place.is_dir() and place in given.parents:
                raise UsageError("--output-dir: is inside of the dataset that is read")


def _width(files: DatasetFiles, said: Mapping[str, Any]) -> int:
    for row in stored_rows(files):
        if len(row.latent):
            return int(row.latent.shape[1])
    width = _part(said, "model").get("hidden_size")
    if not isinstance(width, int):
        raise InputError("holds no latent with rows")
    return width


def _digest(files: DatasetFiles, schema: pa.Schema, num_rows: int) -> str:
    """Return a digest of what describes the data.

    A second pass over all of the data would take as long as compressing it.
    """
    digest = hashlib.sha256(schema.serialize())
    digest.update(num_rows.to_bytes(8, "little"))
    for file in files.all_files():
        digest.update(file.stat().st_size.to_bytes(8, "little"))
        digest.update(_description(file))
    return digest.hexdigest()


def _description(file: Place) -> bytes:
    """Return the part of a file that differs whenever its data does."""
    if file.name == STATE_NAME:
        return file.read_bytes()
    with file.open("rb") as opened:
        if opened.read(len(_PARQUET_MAGIC)) != _PARQUET_MAGIC:
            return b""
        opened.seek(-_FOOTER_END.size, 2)
        length, _ = _FOOTER_END.unpack(opened.read(_FOOTER_END.size))
        size = min(length, _MAX_FOOTER_BYTES) + _FOOTER_END.size
        opened.seek(-min(size, file.stat().st_size), 2)
        return opened.read(size)


def _json_object(path: Place) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # A file or directory alone has none.
        return None
    return value if isinstance(value, dict) else None


def _part(value: Any, name: str) -> Mapping[str, Any]:
    part = value.get(name) if isinstance(value, Mapping) else None
    return part if isinstance(part, Mapping) else {}
