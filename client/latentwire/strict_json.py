"""JSON that can be read in one way only: `json` alone keeps the last value of a repeated key."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any


class RepeatedKeyError(ValueError):
    """An object has a key more than once.

    Attributes:
        key: the key.
    """

    def __init__(self, key: str) -> None:
        super().__init__("must not be repeated")
        self.key = key


def load_json(text: str) -> Any:
    """Read a JSON text.

    Raises:
        RepeatedKeyError: an object has a key more than once.
        ValueError: the text is not JSON, or it is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise RepeatedKeyError(next(key for key, count in counts.items() if count > 1))
    return values
