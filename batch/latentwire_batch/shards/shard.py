"""A shard: the part of a collection's rows that one run collects. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_FOLDER = re.compile(r"shard-([0-9]{5})-of-([0-9]{5})")
# The names of folders hold five digits.
MAX_SHARDS = 99_999
FOLDER_PATTERN = "shard-*-of-*"


@dataclass(frozen=True)
class Shard:
    """One of several parts of the rows.

    Attributes:
        index: `0..count-1`.
        count: shards of the collection.

    Row i belongs to the shard whose index is i modulo count. Within a shard, ranks take its rows in
    turn.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def of_folder(cls, name: str) -> Shard | None:
        """Return the shard whose folder has this name; None for another name."""
        match = _FOLDER.fullmatch(name)
        return None if match is None else cls(int(match[1]), int(match[2]))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shard:
        """Read what `to_json` returned.

        Raises:
            LookupError, TypeError, ValueError: when it is something else.
        """
        index, count = value["index"], value["count"]
        if not (type(index) is type(count) is int and 0 <= index < count):
            raise ValueError("not a shard")
        return cls(index, count)

    def to_json(self) -> dict[str, int]:
        """Return the shard as JSON values."""
        return asdict(self)

    @property
    def folder(self) -> str:
        """The name of the folder that holds its dataset."""
        return f"shard-{self.index:05d}-of-{self.count:05d}"

    def num_rows(self, of_all: int) -> int:
        """Return how many rows belong to it.

        Args:
            of_all: rows of the input.
        """
        return len(range(self.index, of_all, self.count))

    def holds(self, row: int) -> bool:
        """Whether a row belongs to it."""
        return row % self.count == self.index

    def mask(self, num_rows: int) -> npt.NDArray[np.bool_]:
        """Return which rows belong to it: `[num_rows]` bool."""
        mask = np.zeros(num_rows, dtype=np.bool_)
        mask[self.index :: self.count] = True
        return mask

    def __str__(self) -> str:
        """Write it as `--shard` takes it."""
        return f"{self.index}/{self.count}"


ALL_ROWS = Shard()
