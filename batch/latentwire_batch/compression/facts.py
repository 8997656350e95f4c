"""Compressors in the settings of a run: written, read back and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentwire_batch.compression.stored_form import StoredForm

COMPRESSORS, REPLACE = "compressors", "replace"
_SHOWN_HASH_DIGITS = 12


@dataclass(frozen=True)
class CompressorFacts:
    """Which compressors made the columns of a dataset.

    Attributes:
        compressors: what the dataset says about the compressor of each column.
        replaces: whether the full latent is left out.
    """

    compressors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    replaces: bool = False

    @classmethod
    def of(cls, form: StoredForm) -> CompressorFacts:
        """Take the facts from a form."""
        return cls(form.described(), form.replaces)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CompressorFacts:
        """Read what `to_json` returned, among other values.

        Raises:
            TypeError, ValueError: when it is something else.
        """
        given = dict(value.get(COMPRESSORS, {}))
        compressors = {str(column): dict(facts) for column, facts in given.items()}
        return cls(compressors, bool(value.get(REPLACE, False)))

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values: none without compressors."""
        compressors = {column: dict(facts) for column, facts in self.compressors.items()}
        return {
            **({COMPRESSORS: compressors} if compressors else {}),
            **({REPLACE: True} if self.replaces else {}),
        }

    def differences(self, wanted: CompressorFacts) -> list[str]:
        """Name the columns in which a wanted run differs, with both compressors."""
        found = []
        for column in {**self.compressors, **wanted.compressors}:
            before, now = self.compressors.get(column), wanted.compressors.get(column)
            if before != now:
                found.append(f"{column} was {_shown(before)}, now {_shown(now)}")
        if self.replaces != wanted.replaces:
            found.append(f"replace was {self.replaces}, now {wanted.replaces}")
        return found


def _shown(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return "absent"
    parameters = facts.get("parameters")
    k = parameters.get("k") if isinstance(parameters, Mapping) else None
    digits = str(facts.get("content_hash"))[:_SHOWN_HASH_DIGITS]
    return f"{facts.get('name')} (k {'all' if k is None else k}, sha256 {digits})"
