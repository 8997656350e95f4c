"""Compressors of other packages, held to the contract: wrong ones fail by name, not somewhere else.

What such a package does to the rows is its own affair; what it hands over is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, cast, get_args

from latentwire.compressors.base import (
    COMPRESSED,
    MAX_K,
    NAME_PATTERN,
    Compressor,
    CompressorError,
    Output,
    Rows,
    checked_k,
    checked_result,
    checked_rows,
    is_array_name,
)


@dataclass(frozen=True)
class _Foreign:
    """A compressor of another package, with the facts that it stated when it was made."""

    name: str
    kind: str
    k: int | None
    parameters: Mapping[str, Any]
    content_hash: str
    source_width: int | None
    output: Output
    made: Compressor

    def compress(self, rows: Rows) -> dict[str, Rows]:
        checked = checked_rows(rows, self.source_width)
        try:
            # A copy: a flag that forbids writing is cleared as easily as it is set.
            arrays = dict(self.made.compress(_read_only(checked.copy())))
        except CompressorError:
            raise
        except Exception as error:
            raise _failed(self.name, "compress", error) from error
        if COMPRESSED not in arrays:
            raise CompressorError(f"compressor {self.name} returns no {COMPRESSED}")
        for name in arrays:
            if not is_array_name(name):
                raise CompressorError(f"compressor {self.name} returns an array of a wrong name")
        result = {name: self._own(array) for name, array in arrays.items()}
        num_kept, most = len(result[COMPRESSED]), len(checked)
        if num_kept > (most if self.k is None else min(self.k, most)):
            raise CompressorError(
                f"compressor {self.name} returns {num_kept} rows for a latent of {most}"
            )
        return result

    def decompress(self, arrays: Mapping[str, Rows], num_rows: int) -> Rows:
        given = {
            name: _read_only(checked_rows(array, field=name)) for name, array in arrays.items()
        }
        try:
            rows = self.made.decompress(given, num_rows)
        except CompressorError:
            raise
        except Exception as error:
            raise _failed(self.name, "decompress", error) from error
        result = self._own(rows)
        if len(result) != num_rows:
            raise CompressorError(
                f"compressor {self.name} restores {len(result)} rows instead of {num_rows}"
            )
        return result

    def _own(self, array: Any) -> Rows:
        try:
            return checked_result(checked_rows(array))
        except CompressorError as error:
            raise CompressorError(
                f"compressor {self.name} returns an array that {error.reason}"
            ) from error


def foreign_compressor(point: EntryPoint, k: int | None) -> Compressor:
    """Make the compressor of an entry point.

    Args:
        point: of the group `latentwire.compressors`.
        k: most rows that it shall return; None: its own.

    Raises:
        CompressorError: it cannot be imported or made, or breaks the contract.
    """
    if k is not None:
        checked_k(k, point.name)
    try:
        made = point.load()(k)
        facts: dict[str, Any] = {name: getattr(made, name, None) for name in _CHECKS}
    except CompressorError:
        raise
    # A module that ends the process when it is imported shall not end this one.
    except (Exception, SystemExit) as error:
        raise _failed(point.name, "load", error) from error
    for name, check in _CHECKS.items():
        if not check(facts[name]):
            raise CompressorError(f"compressor {point.name} has a wrong {name}", "compressor")
    if facts["name"] != point.name:
        raise CompressorError(f"compressor {point.name} calls itself {facts['name']}", "compressor")
    if k is not None and (facts["k"] is None or facts["k"] > k):
        raise CompressorError(f"compressor {point.name} cannot return at most {k} rows", "k")
    return _Foreign(**facts, made=made)


def _failed(name: str, what: str, error: BaseException) -> CompressorError:
    """Return the error for an exception of the package's code, which may be of any kind."""
    return CompressorError(f"compressor {name} failed to {what}: {type(error).__name__}: {error}")


def _read_only(rows: Rows) -> Rows:
    view = rows.view()
    view.flags.writeable = False
    return view


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_K


def _is_json(value: object) -> bool:
    try:
        json.dumps(dict(cast("Mapping[str, Any]", value)), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _matches(pattern: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


_CHECKS: Mapping[str, Callable[[object], bool]] = {
    "name": _matches(NAME_PATTERN),
    "kind": _matches(NAME_PATTERN),
    "k": lambda value: value is None or _is_count(value),
    "parameters": _is_json,
    "content_hash": _matches("[0-9a-f]{64}"),
    "source_width": lambda value: value is None or _is_count(value),
    "output": lambda value: value in get_args(Output),
}
