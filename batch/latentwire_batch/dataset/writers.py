"""The two file formats of a finished dataset, each written one record batch at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from latentwire.number_formats import NumberFormat
from latentwire_batch.dataset.durable_file import DurableFile
from latentwire_batch.dataset.file_digests import FileDigest
from latentwire_batch.dataset.parquet.file_writer import VALUES_PATH, ParquetFileWriter
from latentwire_batch.dataset.schema import CLASSIC_SCHEMA, FileSchema
from latentwire_batch.tasks.arrow_files import STATE_NAME

# Measured on [128, 576] latents, one core: byte-stream split with zstd level 1 takes 85 % of the
# plain size for full float32 values and 35 % where they come from bfloat16, at 420-470 MB/s.
# zstd alone takes 94 % and 51 %; level 3 is slower and, after the split, no smaller.
_COMPRESSION_LEVEL = 1
_FINGERPRINT_DIGITS = 16
_WITH_STATISTICS = ("task", "task_id")
# Bytes of one value in streams of their own. Parquet widens uint16 to 32 bits, of which the split
# leaves nothing; a split of float16 cannot be read by DuckDB.
_SPLIT: tuple[NumberFormat, ...] = ("float32", "bfloat16")
# There are at most 256 codes. In a dictionary, int8 takes 23 % of float32 and int4 10 %; without
# one, int8 takes 35 %, because Parquet widens it to 32 bits as well.
_DICTIONARY: tuple[NumberFormat, ...] = ("int8", "int4")


class BatchSink(Protocol):
    """Accepts record batches in the dataset's schema, in order."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Write one batch completely; the sink keeps no reference to it."""
        ...

    def close(self) -> None:
        """Finish the files and make them durable."""
        ...

    @property
    def files(self) -> Mapping[Path, FileDigest]:
        """The files of rows, complete when the sink is closed."""
        ...


class ParquetSink:
    """`data.parquet`: each batch becomes one row group.

    Args:
        path: of the file.
        schema: of the dataset.
    """

    def __init__(self, path: Path, schema: FileSchema = CLASSIC_SCHEMA) -> None:
        self._path = path
        self._output = DurableFile(path)
        options = {
            "use_dictionary": _value_columns(schema, _DICTIONARY) or False,
            "use_byte_stream_split": _value_columns(schema, _SPLIT) or False,
            # Minimum and maximum of single floats help no reader, and cost a pass over all values.
            "write_statistics": [name for name in _WITH_STATISTICS if name in schema.arrow.names],
        }
        self._writer = ParquetFileWriter(self._output, schema, _COMPRESSION_LEVEL, options)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write one row group."""
        self._writer.write(batch)

    def close(self) -> None:
        """Write the footer and make the file durable."""
        self._writer.close()
        self._output.close()

    @property
    def files(self) -> Mapping[Path, FileDigest]:
        """The one file."""
        return {self._path: self._output.digest}


class HfDatasetSink:
    """`hf_dataset/`: the layout of `datasets.Dataset.save_to_disk`, as Arrow streams.

    Args:
        directory: created by the sink.
        max_shard_bytes: maximum size of one file, unless a single batch is larger.
        schema: of the dataset.
    """

    def __init__(
        self, directory: Path, max_shard_bytes: int, schema: FileSchema = CLASSIC_SCHEMA
    ) -> None:
        self._directory = directory
        self._schema = schema
        self._max_shard_bytes = max_shard_bytes
        self._digests: list[FileDigest] = []
        self._num_shards = 0
        self._shard_bytes = 0
        directory.mkdir()
        self._open_shard()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append to the current file, or to a new one if it is full."""
        if self._shard_bytes and self._shard_bytes + batch.nbytes > self._max_shard_bytes:
            self._close_shard()
            self._open_shard()
        self._writer.write_batch(batch)
        self._shard_bytes += batch.nbytes

    def close(self) -> None:
        """Rename the files to their final names, and write their description."""
        self._close_shard()
        for index, path in enumerate(self.files):
            self._shard_path(index).rename(path)
        self._write_json(STATE_NAME, self._state())
        self._write_json("dataset_info.json", _dataset_info(self._schema))

    @property
    def files(self) -> Mapping[Path, FileDigest]:
        """The Arrow files."""
        count = len(self._digests)
        names = (f"data-{index:05d}-of-{count:05d}.arrow" for index in range(count))
        return {
            self._directory / name: digest
            for name, digest in zip(names, self._digests, strict=True)
        }

    def _shard_path(self, index: int) -> Path:
        # The final name holds the number of files, which is known only at the end.
        return self._directory / f"shard-{index}.tmp"

    def _open_shard(self) -> None:
        self._output = DurableFile(self._shard_path(self._num_shards))
        self._writer = pa.ipc.new_stream(self._output, self._schema.arrow)
        self._num_shards += 1
        self._shard_bytes = 0

    def _close_shard(self) -> None:
        self._writer.close()
        self._output.close()
        self._digests.append(self._output.digest)

    def _state(self) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps([d.to_json() for d in self._digests]).encode())
        return {
            "_data_files": [{"filename": path.name} for path in self.files],
            # `datasets` caches results by this, so it must differ when the content does.
            "_fingerprint": digest.hexdigest()[:_FINGERPRINT_DIGITS],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        output = DurableFile(self._directory / name)
        output.write(json.dumps(value, indent=2).encode())
        output.close()


def _value_columns(schema: FileSchema, formats: Sequence[NumberFormat]) -> list[str]:
    """Name the columns of values, as Parquet does, of the matrices in some number formats."""
    matrices = (matrix for matrix in schema.matrices if matrix.storage.dtype in formats)
    return [f"{matrix.name}{VALUES_PATH}" for matrix in matrices]


def _dataset_info(schema: FileSchema) -> dict[str, Any]:
    return {
        "citation": "",
        "description": "",
        "features": schema.features,
        "homepage": "",
        "license": "",
    }
