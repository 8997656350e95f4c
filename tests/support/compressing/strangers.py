"""Compressors of a package that nobody vouches for, and how a test installs them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import pytest

SECRET = "the rows say 12345"

Compress = Callable[[Any], Any]


@dataclass
class Stranger:
    """A compressor that does to the rows what its function does."""

    name: str
    function: Compress
    k: int | None
    kind: str = "strange"
    content_hash: str = "ab" * 32
    source_width: int | None = None
    output: str = "rows"
    threads: list[int] = field(default_factory=list)

    @property
    def parameters(self) -> Mapping[str, Any]:
        # Looks like a latent whose values are still missing.
        return {"k": self.k, "data": "", "nested": {"data": ""}}

    def compress(self, rows: Any) -> Any:
        self.threads.append(threading.get_ident())
        return self.function(rows)

    def decompress(self, _arrays: Any, _num_rows: int) -> NoReturn:
        raise NotImplementedError


@dataclass
class Point:
    """An entry point."""

    name: str
    make: Callable[[int | None], Any]
    value: str = "strangers:make"

    def load(self) -> Callable[[int | None], Any]:
        return self.make


def install(
    monkeypatch: pytest.MonkeyPatch,
    functions: Mapping[str, Compress],
    further: Sequence[Point] = (),
) -> dict[str, Stranger]:
    """Install compressors by name; return those that are made, by name."""
    made: dict[str, Stranger] = {}

    def point(name: str, function: Compress) -> Point:
        def make(k: int | None) -> Stranger:
            return made.setdefault(name, Stranger(name, function, k))

        return Point(name, make)

    points = {"latentwire.compressors": [*(point(*each) for each in functions.items()), *further]}
    monkeypatch.setattr(
        "latentwire.compressors.registry.entry_points", lambda group: points.get(group, [])
    )
    return made


def raises(_rows: Any) -> NoReturn:
    raise ValueError(SECRET)


def stops(_rows: Any) -> NoReturn:
    raise StopIteration(SECRET)


def exits(_rows: Any) -> NoReturn:
    sys.exit(SECRET)


def writes(rows: Any) -> Any:
    rows[:] = 0
    return {"hidden_state_comp": rows}


def matrix(value: Any) -> Compress:
    """Return a function that returns a constant as the main array."""
    return lambda _rows: {"hidden_state_comp": value}


ONE_ROW = np.ones((1, 4), np.float32)

BROKEN: dict[str, Compress] = {
    "raises": raises,
    "stops": stops,
    "exits": exits,
    "writes": writes,
    "returns-none": lambda _rows: None,
    "returns-list": lambda _rows: [1],
    "no-main-array": lambda _rows: {"other": ONE_ROW},
    "nan": matrix(np.full((1, 4), np.nan, np.float32)),
    "infinite": matrix(np.full((1, 4), np.inf, np.float32)),
    "too-large": matrix(np.full((1, 4), 1e300)),
    "vector": matrix(np.ones(4, np.float32)),
    "cube": matrix(np.ones((1, 2, 2), np.float32)),
    "no-width": matrix(np.ones((1, 0), np.float32)),
    "too-many-rows": matrix(np.ones((50, 4), np.float32)),
    "texts": matrix(np.array([["a"]])),
    "ragged": matrix([[1.0], [1.0, 2.0]]),
    "named-scales": lambda _rows: {"hidden_state_comp": ONE_ROW, "scales": ONE_ROW},
    "named-path": lambda _rows: {"hidden_state_comp": ONE_ROW, "../x": ONE_ROW},
    "named-number": lambda _rows: {"hidden_state_comp": ONE_ROW, 3: ONE_ROW},
    "array-of-nan": lambda _rows: {"hidden_state_comp": ONE_ROW, "a": ONE_ROW * np.nan},
}
"""Functions that are no compressors, by name."""
