"""Thrift's compact protocol, in which Parquet writes its page headers and its footer.

A structure is read without knowing its definition and can be written again after a change. Maps do
not occur in Parquet.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple


class Kind(IntEnum):
    """Types of a field or of a list's elements."""

    TRUE = 1
    FALSE = 2
    BYTE = 3
    I16 = 4
    I32 = 5
    I64 = 6
    DOUBLE = 7
    BINARY = 8
    LIST = 9
    SET = 10
    STRUCT = 12


class Value(NamedTuple):
    """A value with its type.

    Attributes:
        kind: the type. A boolean is `TRUE`, whatever its value.
        value: a bool, int, float or bytes; `Elements` for a list or a set; for a structure its
            fields by id, or the bytes of one that is encoded already.
    """

    kind: Kind
    value: Any


class Elements(NamedTuple):
    """The elements of a list or set.

    Attributes:
        kind: of all elements.
        values: each like `Value.value`.
    """

    kind: Kind
    values: Sequence[Any]


Struct = dict[int, Value]
_INTEGERS = (Kind.I16, Kind.I32, Kind.I64)
_BOOLEANS = (Kind.TRUE, Kind.FALSE)
_DOUBLE = struct.Struct("<d")
# Longer lists, and field ids that are farther apart, have a number of their own.
_MAX_SHORT_LIST = 14
_MAX_SHORT_STEP = 15


def encode_struct(fields: Mapping[int, Value]) -> bytes:
    """Encode a structure."""
    out = bytearray()
    previous = 0
    for field, (kind, value) in sorted(fields.items()):
        stated = Kind.FALSE if kind == Kind.TRUE and not value else kind
        step = field - previous
        if 1 <= step <= _MAX_SHORT_STEP:
            out.append(step << 4 | stated)
        else:
            out.append(stated)
            out += varint(_zigzag(field))
        if kind != Kind.TRUE:
            _encode(out, kind, value)
        previous = field
    out.append(0)
    return bytes(out)


def decode_struct(data: bytes) -> Struct:
    """Decode the structure at the start of some bytes.

    Raises:
        ValueError, IndexError: when there is none.
    """
    return _Reader(data).struct()


def _encode(out: bytearray, kind: Kind, value: Any) -> None:
    if kind in _BOOLEANS:
        out.append(Kind.TRUE if value else Kind.FALSE)
    elif kind == Kind.BYTE:
        out += value.to_bytes(1, "little", signed=True)
    elif kind in _INTEGERS:
        out += varint(_zigzag(value))
    elif kind == Kind.DOUBLE:
        out += _DOUBLE.pack(value)
    elif kind == Kind.BINARY:
        out += varint(len(value))
        out += value
    elif kind == Kind.STRUCT:
        out += value if isinstance(value, bytes) else encode_struct(value)
    else:
        size = len(value.values)
        out.append(min(size, _MAX_SHORT_LIST + 1) << 4 | value.kind)
        if size > _MAX_SHORT_LIST:
            out += varint(size)
        for element in value.values:
            _encode(out, value.kind, element)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def struct(self) -> Struct:
        fields: Struct = {}
        field = 0
        while head := self._byte():
            step = head >> 4
            field = field + step if step else self._integer()
            kind = Kind(head & 15)
            if kind in _BOOLEANS:
                fields[field] = Value(Kind.TRUE, kind == Kind.TRUE)
            else:
                fields[field] = Value(kind, self._value(kind))
        return fields

    def _value(self, kind: Kind) -> Any:
        if kind in _BOOLEANS:
            return self._byte() == Kind.TRUE
        if kind == Kind.BYTE:
            return int.from_bytes(self._bytes(1), "little", signed=True)
        if kind in _INTEGERS:
            return self._integer()
        if kind == Kind.DOUBLE:
            return _DOUBLE.unpack(self._bytes(_DOUBLE.size))[0]
        if kind == Kind.BINARY:
            return self._bytes(self._varint())
        if kind == Kind.STRUCT:
            return self.struct()
        head = self._byte()
        size = head >> 4
        if size > _MAX_SHORT_LIST:
            size = self._varint()
        element = Kind(head & 15)
        return Elements(element, [self._value(element) for _ in range(size)])

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def _byte(self) -> int:
        self._position += 1
        return self._data[self._position - 1]

    def _bytes(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        return self._data[start : self._position]


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def varint(value: int) -> bytes:
    """Encode a number that is not negative with seven bits in each byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
