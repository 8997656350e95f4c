"""Parquet files of any number of row groups."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from latentwire_batch.dataset.parquet.chunks import Chunk, Page, PageEncoder
from latentwire_batch.dataset.parquet.footer import (
    MAGIC,
    ChunkSize,
    FileOfArrow,
    column_chunk,
    row_group,
)
from latentwire_batch.dataset.parquet.thrift import Struct
from latentwire_batch.dataset.schema import FileSchema

# Where Parquet keeps the values of a list of lists.
VALUES_PATH = ".list.element.list.element"
# Reading the rows and writing the files keep a few cores busy at this rate.
_MAX_THREADS = 4


class Output(Protocol):
    """Takes the bytes of a file."""

    def write(self, data: bytes | pa.Buffer) -> int:
        """Append bytes."""
        ...

    def tell(self) -> int:
        """Return how many bytes were appended."""
        ...


class ParquetFileWriter:
    """Writes a file as Arrow would, with the matrices encoded on several threads.

    Arrow encodes texts and whatever else has one value or a short list in each row, and states the
    schema.

    Args:
        output: receives the file; the caller closes it.
        schema: of the file.
        compression_level: of zstd.
        options: of Arrow's writer.
    """

    def __init__(
        self, output: Output, schema: FileSchema, compression_level: int, options: Mapping[str, Any]
    ) -> None:
        self._output = output
        self._matrices = schema.matrices
        self._encoder = PageEncoder(compression_level)
        self._options = {
            **options,
            "compression": "zstd",
            "compression_level": compression_level,
        }
        empty = self._write_by_arrow(schema.arrow)
        self._template = FileOfArrow(empty)
        paths = pq.ParquetFile(empty).schema
        self._paths = [paths.column(number).path for number in range(len(paths))]
        self._row_groups: list[bytes] = []
        self._num_rows = 0
        num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="parquet")
        self._max_pending = num_threads + 1
        output.write(MAGIC)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write a batch as one row group."""
        offset = self._output.tell()
        own = self._own_chunks(batch)
        chunks: dict[str, Struct] = {}
        others = batch.select([name for name in batch.schema.names if name not in own])
        if others.num_columns:
            file = FileOfArrow(self._write_by_arrow(others.schema, others))
            self._output.write(file.data)
            chunks |= file.chunks(offset)
        for name, chunk in own.items():
            path = name + VALUES_PATH
            chunks[path] = self._write_chunk(path, chunk)
        in_order = [chunks[path] for path in self._paths]
        self._row_groups.append(row_group(in_order, batch.num_rows, offset))
        self._num_rows += batch.num_rows

    def close(self) -> None:
        """Write the footer."""
        self._threads.shutdown()
        self._output.write(self._template.footer(self._num_rows, self._row_groups))

    def _own_chunks(self, batch: pa.RecordBatch) -> Mapping[str, Chunk]:
        found = {
            matrix.name: Chunk.of(
                matrix, batch.schema.field(matrix.name), batch.column(matrix.name)
            )
            for matrix in self._matrices
        }
        return {name: chunk for name, chunk in found.items() if chunk is not None}

    def _write_by_arrow(self, schema: pa.Schema, batch: pa.RecordBatch | None = None) -> pa.Buffer:
        stream = pa.BufferOutputStream()
        with pq.ParquetWriter(stream, schema, **self._options) as writer:
            if batch is not None:
                writer.write_batch(batch, row_group_size=max(1, batch.num_rows))
        return stream.getvalue()

    def _write_chunk(self, path: str, chunk: Chunk) -> Struct:
        offset = self._output.tell()
        num_pages = num_bytes = 0
        for page in self._encoded(chunk.pages()):
            self._output.write(page.header)
            self._output.write(page.body)
            num_pages += 1
            num_bytes += page.num_bytes
        size = ChunkSize(
            offset=offset,
            num_values=chunk.values.size,
            num_pages=num_pages,
            num_bytes=num_bytes,
            num_compressed=self._output.tell() - offset,
        )
        return column_chunk(path, chunk.layout.type, chunk.layout.encoding, size)

    def _encoded(self, pages: Iterator[Chunk]) -> Iterator[Page]:
        """Encode pages on the threads; yield them in order."""
        pending: deque[Future[Page]] = deque(map(self._submit, islice(pages, self._max_pending)))
        while pending:
            page = pending.popleft().result()
            pending.extend(map(self._submit, islice(pages, 1)))
            yield page

    def _submit(self, page: Chunk) -> Future[Page]:
        return self._threads.submit(self._encoder.encode, page)
