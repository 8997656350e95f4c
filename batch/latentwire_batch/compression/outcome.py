"""What a rewritten dataset says about itself, and its list of failures."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latentwire.storage import STORAGE
from latentwire_batch.compression.facts import COMPRESSORS, REPLACE, CompressorFacts
from latentwire_batch.compression.rewriting import Written
from latentwire_batch.compression.row_log import LostRow
from latentwire_batch.compression.source import SourceDataset
from latentwire_batch.compression.stored_form import LatentEncoder, StoredForm
from latentwire_batch.dataset.file_digests import FILES
from latentwire_batch.dataset.manifest import FORMAT, cut_plans, layout_json
from latentwire_batch.dataset.schema import LATENT_COLUMN
from latentwire_batch.errors import InputError
from latentwire_batch.locations import Place

STEP = "compression"
_STORAGE_DTYPE = "storage_dtype"


@dataclass(frozen=True)
class Step:
    """One rewriting of one dataset: compared before it resumes, kept in the manifest.

    Attributes:
        num_rows: of the dataset that is read.
        sha256: see `SourceDataset`.
        facts: the compressors of the new columns.
        storage_dtype: number format that was given; None: none was.
    """

    num_rows: int
    sha256: str
    facts: CompressorFacts
    storage_dtype: str | None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Step:
        """Read what `to_json` returned; raises LookupError or TypeError for other values."""
        data = value["input"]
        facts = CompressorFacts.from_json(value)
        return cls(data["num_rows"], data["sha256"], facts, value.get(_STORAGE_DTYPE))

    def to_json(self) -> dict[str, Any]:
        """Return the step as JSON values."""
        data = {"num_rows": self.num_rows, "sha256": self.sha256}
        return {"input": data, **self.facts.to_json(), _STORAGE_DTYPE: self.storage_dtype}

    def differences(self, wanted: Step) -> list[str]:
        """Name what is different in a wanted step, with both values."""
        found = self.facts.differences(wanted.facts)
        if self.storage_dtype != wanted.storage_dtype:
            before, now = (step.storage_dtype or "absent" for step in (self, wanted))
            found.append(f"storage_dtype was {before}, now {now}")
        if self.num_rows != wanted.num_rows:
            found.insert(0, f"DATASET had {self.num_rows} rows, now {wanted.num_rows}")
        elif self.sha256 != wanted.sha256:
            found.insert(0, "DATASET had other content")
        return found


@dataclass(frozen=True)
class Outcome:
    """What is known of a rewritten dataset.

    Attributes:
        source: the dataset that was read.
        step: what was wanted.
        form: of the new columns.
        encoder: that made them.
    """

    source: SourceDataset
    step: Step
    form: StoredForm
    encoder: LatentEncoder

    def declaration(self) -> dict[str, Any]:
        """Return what the new files say about how they were made."""
        return self._said(self.source.declaration)

    def manifest(
        self, written: Written, splits: Mapping[str, int], files: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the new manifest.

        Args:
            written: what the second pass wrote.
            splits: rows of each split; empty for the classic layout.
            files: the digests of the new files.
        """
        before = self.source.manifest or {}
        said = self._said(before or self.source.declaration)
        for name in layout_json({"": 0}):
            said.pop(name, None)
        own = {name: version(name) for name in ("latentwire", "numpy", "pyarrow")}
        return {
            **said,
            **layout_json(splits),
            FILES: files,
            "counts": self._counts(before.get("counts"), written),
            "versions": said.get("versions") or own,
            STEP: {**self.step.to_json(), "left_out": written.lost.rows, "versions": own},
        }

    def _said(self, before: Mapping[str, Any]) -> dict[str, Any]:
        said = {"format": FORMAT, **before}
        compressors = {**_mapping(said, COMPRESSORS), **self.form.described()}
        storage = {**_mapping(said, STORAGE), **self._storage()}
        if not self.form.keeps_latent and LATENT_COLUMN not in self._storage():
            storage.pop(LATENT_COLUMN, None)
        said |= {COMPRESSORS: compressors, STORAGE: storage}
        if isinstance(said.get("settings"), Mapping):
            said["settings"] = self._settings(said["settings"])
        return {name: value for name, value in said.items() if value != {}}

    def _storage(self) -> dict[str, Any]:
        return {
            column.name: column.storage.to_json()
            for column in self.encoder.columns
            if column.storage.dtype != "float32"
        }

    def _settings(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a collection that would have given the same columns."""
        settings = dict(before)
        if self.step.storage_dtype is not None:
            settings[_STORAGE_DTYPE] = self.step.storage_dtype
        if settings.get(_STORAGE_DTYPE) == "float32":
            # As `collect` writes it.
            del settings[_STORAGE_DTYPE]
        return settings | ({REPLACE: True} if self.form.replaces else {})

    def _counts(self, before: object, written: Written) -> dict[str, Any]:
        num_stored = 0 if self.form.replaces else written.latent_rows
        known = dict(before) if isinstance(before, Mapping) else {}
        if not all(isinstance(known.get(name), int) for name in ("rows", "finished", "failed")):
            num_rows = self.source.num_rows
            known = {"rows": num_rows, "finished": num_rows, "failed": 0}
        lost = written.lost
        changes = {**lost.sums, "finished": lost.rows, "failed": -lost.rows}
        counts = {
            name: value - changes.get(name, 0) if isinstance(value, int) else value
            for name, value in known.items()
        }
        reasons = counts.get("finish_reasons")
        if isinstance(reasons, Mapping):
            left = Counter(reasons)
            left.subtract(lost.finish_reasons)
            reasons = {reason: number for reason, number in left.items() if number}
            counts |= {"finish_reasons": reasons, "cut_plans": cut_plans(reasons)}
        return {**counts, "latent_steps": num_stored}


def write_failures(path: Path, source: SourceDataset, lost: Iterator[LostRow]) -> int:
    """Write the failures of the collection and the rows that are lost, in order of the input.

    Returns:
        The number of failures.

    Raises:
        InputError: when the list of the collection cannot be read.
        OSError: when the file cannot be written.
    """
    failures = _earlier_failures(source.failures)
    # A row of the dataset is the input's row with as many more as failed before it.
    failed = sorted(failures)
    for row in lost:
        place = row.index
        for index in failed:
            place += index <= place
        failures[place] = {
            "row": place,
            "task_id": row.task_id,
            "code": row.code,
            "message": row.message,
        }
    if failures:
        with path.open("w", encoding="utf-8") as file:
            for _, line in sorted(failures.items()):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return len(failures)


def _earlier_failures(path: Place) -> dict[int, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            lines = [json.loads(line) for line in file if line.strip()]
        return {int(line["row"]): line for line in lines}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError("DATASET: its failures.jsonl cannot be read") from error


def _mapping(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = value.get(name)
    return dict(part) if isinstance(part, Mapping) else {}
