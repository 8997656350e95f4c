"""`manifest.json`: how a finished output was made, so that it can be compared and repeated.

Holds no host name, no address and no path.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latentwire.protocol import latent_info
from latentwire.storage import STORAGE
from latentwire_batch.compression.facts import COMPRESSORS
from latentwire_batch.dataset.file_digests import FILES
from latentwire_batch.dataset.matrices import MatrixColumn
from latentwire_batch.errors import StorageError
from latentwire_batch.output.durable import read_json
from latentwire_batch.output.split_data import SPLITS
from latentwire_batch.replicas.fleet import FleetSummary
from latentwire_batch.run_settings import RunSettings

_PACKAGES = ("latentwire", "numpy", "pyarrow")
FORMAT = 1


@dataclass(frozen=True)
class Counts:
    """Sums over the rows of a dataset.

    Attributes:
        rows: rows of the input.
        finished: rows with a latent.
        failed: rows without one.
        prompt_tokens: over the finished rows.
        completion_tokens: over the finished rows.
        latent_steps: stored rows of latents.
        finish_reasons: finished rows by reason.
    """

    rows: int
    finished: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    latent_steps: int
    finish_reasons: Mapping[str, int]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        """Read what `to_json` returned.

        Raises:
            LookupError, TypeError, ValueError: when it is something else.
        """
        counts = cls(**{name: value[name] for name in cls.__dataclass_fields__})
        numbers = {**asdict(counts), **counts.finish_reasons}
        del numbers["finish_reasons"]
        if not all(type(number) is int and number >= 0 for number in numbers.values()):
            raise ValueError("not a count")
        return counts

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        reasons = dict(sorted(self.finish_reasons.items()))
        return {**asdict(self), "finish_reasons": reasons, "cut_plans": cut_plans(reasons)}


@dataclass(frozen=True)
class Manifest:
    """The part of a manifest that a later run reads.

    Attributes:
        settings: of the run, model included.
        counts: of the output.
        elapsed_s: seconds of all runs that made it, assembly included.
    """

    settings: RunSettings
    counts: Counts
    elapsed_s: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """Read a manifest.

        Raises:
            StorageError: when a value is missing or damaged.
        """
        try:
            settings = {**value["settings"], "model": value["model"]}
            settings[COMPRESSORS] = value.get(COMPRESSORS, {})
            counts, elapsed_s = Counts.from_json(value["counts"]), float(value["elapsed_s"])
        except (LookupError, TypeError, ValueError) as error:
            raise StorageError("the output's manifest.json is damaged") from error
        return cls(RunSettings.from_json(settings), counts, elapsed_s)

    def to_json(
        self,
        fleet: FleetSummary | None,
        matrices: Sequence[MatrixColumn],
        splits: Mapping[str, int] | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the manifest as JSON values, with the versions of this installation.

        Args:
            matrices: the columns of matrices.
            fleet: the replicas that answered last; None when all rows were stored before.
            splits: rows of each split in the files, for the hub layout; None: the classic one.
            files: their digests; see `file_digests.files_json`.
        """
        declared = declaration(self.settings, matrices)
        return {
            **{name: value for name, value in declared.items() if name != "versions"},
            **layout_json(splits),
            **({FILES: dict(files)} if files else {}),
            "counts": self.counts.to_json(),
            "replicas": {} if fleet is None else fleet.to_json(),
            "elapsed_s": round(self.elapsed_s, 3),
            "versions": declared["versions"],
        }


def layout_json(splits: Mapping[str, int] | None) -> dict[str, Any]:
    """Return what a manifest says about its files; nothing for the classic layout."""
    return {"layout": "hub", SPLITS: dict(splits)} if splits else {}


def declaration(settings: RunSettings, matrices: Sequence[MatrixColumn]) -> dict[str, Any]:
    """Return the part of a manifest that is known before the rows are: what the latents are.

    Args:
        settings: of a run whose model is known.
        matrices: the columns of matrices.
    """
    model = settings.model
    assert model is not None
    latent = latent_info(model.model, model.revision)
    storage, values = storage_json(matrices), replace(settings, model=None).to_json()
    compressors = values.pop(COMPRESSORS, None)
    return {
        "format": FORMAT,
        "model": model.to_json(),
        "latent": latent.model_dump(include={"layer", "normed", "alignment"}),
        **({STORAGE: storage} if storage else {}),
        **({COMPRESSORS: compressors} if compressors else {}),
        "settings": values,
        "versions": {
            **{package: version(package) for package in _PACKAGES},
            "python": platform.python_version(),
        },
    }


def storage_json(matrices: Sequence[MatrixColumn]) -> dict[str, Any]:
    """Return how matrix columns are stored, without those that are plain float32."""
    return {
        matrix.name: matrix.storage.to_json()
        for matrix in matrices
        if matrix.storage.dtype != "float32"
    }


def cut_plans(finish_reasons: Mapping[str, int]) -> int:
    """Count the plans that a limit cut, in finished rows by reason."""
    return finish_reasons.get("length", 0)


def read_manifest(path: Path) -> Manifest | None:
    """Read the manifest of a finished output; None when there is none.

    Raises:
        StorageError: when it cannot be read.
    """
    value = read_json(path)
    return None if value is None else Manifest.from_json(value)
