"""Parquet's footer: what Arrow states about a file, changed and completed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from latentwire_batch.dataset.parquet.thrift import (
    Elements,
    Kind,
    Struct,
    Value,
    decode_struct,
    encode_struct,
)

MAGIC = b"PAR1"
_SIZE_BYTES = 4
_DATA_PAGE, _RLE, _ZSTD = 0, 3, 6
# Field ids of Parquet's definition: of the footer,
_NUM_ROWS, _ROW_GROUPS = 3, 4
# of a row group,
_COLUMNS, _GROUP_BYTES, _GROUP_ROWS, _GROUP_OFFSET, _GROUP_COMPRESSED = 1, 2, 3, 5, 6
# of a column chunk,
_CHUNK_OFFSET, _META = 2, 3
# and of its metadata.
_TYPE, _ENCODINGS, _PATH, _CODEC, _NUM_VALUES = 1, 2, 3, 4, 5
_NUM_BYTES, _NUM_COMPRESSED, _DATA_OFFSET, _ENCODING_COUNTS = 6, 7, 9, 13
# Places in the file.
_CHUNK_OFFSETS = (_CHUNK_OFFSET, 4, 6)
_META_OFFSETS = (_DATA_OFFSET, 10, 11, 14)


@dataclass(frozen=True)
class ChunkSize:
    """A column chunk that lies in a file.

    Attributes:
        offset: of its first page, in bytes from the file's start.
        num_values: in all pages.
        num_pages: of data.
        num_bytes: of the page headers and of the pages before their compression.
        num_compressed: of the page headers and the pages.
    """

    offset: int
    num_values: int
    num_pages: int
    num_bytes: int
    num_compressed: int


class FileOfArrow:
    """A whole Parquet file in memory, as Arrow writes it.

    Args:
        file: its bytes.
    """

    def __init__(self, file: pa.Buffer) -> None:
        end = file.size - len(MAGIC) - _SIZE_BYTES
        size = int.from_bytes(file[end : end + _SIZE_BYTES].to_pybytes(), "little")
        self._footer = decode_struct(file[end - size : end].to_pybytes())
        # The column chunks: what lies between the magic word and the footer.
        self.data: pa.Buffer = file[len(MAGIC) : end - size]

    def chunks(self, offset: int) -> Mapping[str, Struct]:
        """Return the column chunks of the only row group by path.

        Args:
            offset: at which `data` begins in another file.
        """
        (group,) = self._footer[_ROW_GROUPS].value.values
        chunks = [_moved(chunk, offset - len(MAGIC)) for chunk in group[_COLUMNS].value.values]
        return {_path_of(chunk): chunk for chunk in chunks}

    def footer(self, num_rows: int, row_groups: Sequence[bytes]) -> bytes:
        """Return this file's footer with other row groups, to the end of the file.

        Args:
            num_rows: of all row groups.
            row_groups: each encoded.
        """
        fields = {
            **self._footer,
            _NUM_ROWS: Value(Kind.I64, num_rows),
            _ROW_GROUPS: Value(Kind.LIST, Elements(Kind.STRUCT, row_groups)),
        }
        encoded = encode_struct(fields)
        return encoded + len(encoded).to_bytes(_SIZE_BYTES, "little") + MAGIC


def column_chunk(path: str, kind: int, encoding: int, size: ChunkSize) -> Struct:
    """Describe a column chunk of compressed pages without a dictionary.

    Args:
        path: of its column, with dots.
        kind: Parquet's number for the physical type.
        encoding: Parquet's number for the encoding of the values.
        size: where it is, and how large.
    """
    count = {1: _i32(_DATA_PAGE), 2: _i32(encoding), 3: _i32(size.num_pages)}
    meta = {
        _TYPE: _i32(kind),
        _ENCODINGS: Value(Kind.LIST, Elements(Kind.I32, [_RLE, encoding])),
        _PATH: Value(Kind.LIST, Elements(Kind.BINARY, path.encode().split(b"."))),
        _CODEC: _i32(_ZSTD),
        _NUM_VALUES: _i64(size.num_values),
        _NUM_BYTES: _i64(size.num_bytes),
        _NUM_COMPRESSED: _i64(size.num_compressed),
        _DATA_OFFSET: _i64(size.offset),
        _ENCODING_COUNTS: Value(Kind.LIST, Elements(Kind.STRUCT, [count])),
    }
    # Writers used to repeat the metadata in the file; zero says that this one does not.
    return {_CHUNK_OFFSET: _i64(0), _META: Value(Kind.STRUCT, meta)}


def row_group(chunks: Sequence[Struct], num_rows: int, offset: int) -> bytes:
    """Encode the description of a row group.

    Args:
        chunks: of all columns, in the order of the schema.
        num_rows: of the dataset.
        offset: of its first page, in bytes from the file's start.
    """
    metas = [chunk[_META].value for chunk in chunks]
    return encode_struct(
        {
            _COLUMNS: Value(Kind.LIST, Elements(Kind.STRUCT, chunks)),
            _GROUP_BYTES: _i64(sum(meta[_NUM_BYTES].value for meta in metas)),
            _GROUP_ROWS: _i64(num_rows),
            _GROUP_OFFSET: _i64(offset),
            _GROUP_COMPRESSED: _i64(sum(meta[_NUM_COMPRESSED].value for meta in metas)),
        }
    )


def _i32(value: int) -> Value:
    return Value(Kind.I32, value)


def _i64(value: int) -> Value:
    return Value(Kind.I64, value)


def _path_of(chunk: Struct) -> str:
    names: Sequence[bytes] = chunk[_META].value[_PATH].value.values
    return b".".join(names).decode()


def _moved(chunk: Struct, step: int) -> Struct:
    """Return a column chunk whose pages lie `step` bytes further back in the file."""
    meta = _with_offsets(chunk[_META].value, _META_OFFSETS, step)
    return _with_offsets(chunk, _CHUNK_OFFSETS, step) | {_META: Value(Kind.STRUCT, meta)}


def _with_offsets(fields: Struct, offsets: Sequence[int], step: int) -> Struct:
    # Zero means that there is no such place.
    present = [field for field in offsets if field in fields and fields[field].value]
    return fields | {field: _i64(fields[field].value + step) for field in present}
