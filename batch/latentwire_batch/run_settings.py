"""The settings that define a collection: compared before a run resumes, kept in the manifest.

They hold no paths and no addresses: the input is known by its rows, the model by its replicas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from os.path import commonprefix
from pathlib import Path
from typing import Any, Literal, cast

from latentwire import PlanOptions
from latentwire.number_formats import NumberFormat
from latentwire.sampling import PromptFields
from latentwire_batch.compression.facts import CompressorFacts
from latentwire_batch.dispatch.seeds import EARLIER_ROW_SEED_BITS, Seeds
from latentwire_batch.errors import StorageError
from latentwire_batch.output.durable import read_json
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.shards.shard import Shard
from latentwire_batch.tasks.hub_dataset import (
    HubDataset,
    hub_datasets_from_json,
    hub_datasets_to_json,
)
from latentwire_batch.tasks.inputs import SplitRows
from latentwire_batch.tasks.rows import DataIdentity, RowFields

_MAX_SHOWN_CHARS = 40
# Of long values that begin alike.
_MAX_SAME_CHARS = 20
_STORAGE_DTYPE = "storage_dtype"
_SHARD = "shard"
_LAYOUT, _SPLITS = "layout", "splits"
Layout = Literal["classic", "hub"]


@dataclass(frozen=True)
class RunSettings:
    """The settings of one collection.

    Attributes:
        data: number and digest of the input's rows.
        k: hidden rows to keep; None: all.
        options: prompt and sampling options of every row, without a seed.
        columns: names of the columns that the dataset has besides the classic ones.
        storage_dtype: number format in which the latents are stored.
        compression: which compressors made columns of the dataset.
        fields: which fields of the input make a row; None: not recorded.
        hub_datasets: of which the rows are; empty: not of the hub, or not recorded.
        seed: of the dataset; None while any seed would do.
        row_seed_bits: see `Seeds`; None while any would do.
        requested_model: name of the model that own replicas serve; None with given replicas.
        model: the served model; None before a replica has answered.
        shard: to which the rows belong; None: all rows of the input.
        splits: of the input, with the hub layout; empty: the classic layout, which has none.
    """

    data: DataIdentity
    k: int | None
    options: PlanOptions
    columns: tuple[str, ...] = ()
    storage_dtype: NumberFormat = "float32"
    compression: CompressorFacts = field(default_factory=CompressorFacts)
    fields: RowFields | None = None
    hub_datasets: tuple[HubDataset, ...] = ()
    seed: int | None = None
    row_seed_bits: int | None = None
    requested_model: str | None = None
    model: ModelIdentity | None = None
    shard: Shard | None = None
    splits: tuple[SplitRows, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunSettings:
        """Read what `to_json` returned.

        Raises:
            StorageError: when a value is missing.
        """
        try:
            data, model, fields = value["data"], value.get("model"), value.get("input")
            shard = value.get(_SHARD)
            return cls(
                data=DataIdentity(data["num_rows"], data["sha256"]),
                k=value["k"],
                options=cast(PlanOptions, {**value["prompt"], **value["sampling"]}),
                columns=tuple(value.get("columns", ())),
                storage_dtype=value.get(_STORAGE_DTYPE, "float32"),
                compression=CompressorFacts.from_json(value),
                fields=None if fields is None else RowFields.from_json(fields),
                hub_datasets=hub_datasets_from_json(fields or {}),
                seed=value.get("seed"),
                row_seed_bits=value.get(
                    "row_seed_bits", EARLIER_ROW_SEED_BITS if "seed" in value else None
                ),
                requested_model=value.get("requested_model"),
                model=None if model is None else ModelIdentity.from_json(model),
                shard=None if shard is None else Shard.from_json(shard),
                splits=tuple(SplitRows(**split) for split in value.get(_SPLITS, ())),
            )
        except (LookupError, TypeError, ValueError) as error:
            raise StorageError("the output's settings are damaged") from error

    @property
    def seeds(self) -> Seeds | None:
        """The seeds of the dataset; None while they are not chosen."""
        if self.seed is None or self.row_seed_bits is None:
            return None
        return Seeds(self.seed, self.row_seed_bits, self.options.get("date"))

    @property
    def layout(self) -> Layout:
        """The names of the dataset's files."""
        return "hub" if self.splits else "classic"

    def with_seeds(self, seeds: Seeds) -> RunSettings:
        """Return these settings with the seeds that were chosen."""
        options = self.options if seeds.date is None else {**self.options, "date": seeds.date}
        return replace(
            self,
            options=options,
            seed=seeds.dataset_seed,
            row_seed_bits=seeds.row_seed_bits,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, without those that are not known."""
        options: dict[str, Any] = {**self.options}
        hub = hub_datasets_to_json(self.hub_datasets)
        known = {
            # Only where it differs from that of earlier versions, which do not know it.
            _STORAGE_DTYPE: None if self.storage_dtype == "float32" else self.storage_dtype,
            "input": None if self.fields is None else {**hub, **self.fields.to_json()},
            _SHARD: None if self.shard is None else self.shard.to_json(),
            _LAYOUT: self.layout if self.splits else None,
            _SPLITS: [asdict(split) for split in self.splits] or None,
            "seed": self.seed,
            "row_seed_bits": self.row_seed_bits,
            "requested_model": self.requested_model,
            "model": None if self.model is None else self.model.to_json(),
        }
        return {
            "data": asdict(self.data),
            "k": self.k,
            "prompt": {
                name: options.pop(name) for name in PromptFields.model_fields if name in options
            },
            "sampling": options,
            "columns": list(self.columns),
            **self.compression.to_json(),
            **{name: value for name, value in known.items() if value is not None},
        }

    def differences(self, wanted: RunSettings) -> list[str]:
        """Name the settings in which a wanted run differs from this one.

        Args:
            wanted: settings that it does not know are not compared.

        Returns:
            One phrase per differing setting; empty when the runs agree.
        """
        own = self.to_json() | {_STORAGE_DTYPE: self.storage_dtype, _LAYOUT: self.layout}
        compared = {_SHARD: None, **wanted.to_json(), _STORAGE_DTYPE: wanted.storage_dtype}
        compared[_LAYOUT] = wanted.layout
        if wanted.layout != self.layout:
            compared.pop(_SPLITS, None)
        for part in ("prompt", "sampling"):
            # An option that this run sets and the other leaves to the service is a difference.
            compared[part] = {**dict.fromkeys(own[part]), **compared[part]}
        if "date" not in wanted.options:
            # A run that names no date takes that of the output.
            compared["prompt"].pop("date", None)
        if self.model is None or self.model.generation_defaults is None:
            # An earlier version did not record them.
            compared.get("model", {}).pop("generation_defaults", None)
        elif wanted.model is not None and wanted.model.generation_defaults is not None:
            compared["model"]["generation_defaults"] = {
                **dict.fromkeys(self.model.generation_defaults),
                **wanted.model.generation_defaults,
            }
        compared.get("model", {}).pop("engine_version", None)
        if self.model is None or self.model.engine is None:
            compared.get("model", {}).pop("engine", None)
        # The digest of the rows is compared instead: the same rows may stand elsewhere.
        compared.pop("input", None)
        if self.requested_model is None:
            # This run was given replicas: the model that they serve is compared instead.
            compared.pop("requested_model", None)
        for name in wanted.compression.to_json():
            del compared[name]
        return _differences(own, compared) + self.compression.differences(wanted.compression)


def read_settings(path: Path) -> RunSettings | None:
    """Read the settings of an unfinished run; None when there is none.

    Raises:
        StorageError: when the file cannot be read.
    """
    value = read_json(path)
    return None if value is None else RunSettings.from_json(value)


def _differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    found: list[str] = []
    for name, value in wanted.items():
        before = stored.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            found += _differences(before, value, f"{prefix}{name}.")
        elif before != value:
            was, now = shown_values(before, value)
            found.append(f"{prefix}{name} was {was}, now {now}")
    return found


def shown_values(one: Any, other: Any) -> tuple[str, str]:
    """Return two values that differ as short texts that differ, too."""
    texts = repr(one), repr(other)
    start = max(0, len(commonprefix(texts)) - _MAX_SAME_CHARS)
    if max(map(len, texts)) <= _MAX_SHOWN_CHARS:
        start = 0
    return _cut(texts[0], start), _cut(texts[1], start)


def _cut(text: str, start: int) -> str:
    end = start + _MAX_SHOWN_CHARS
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")
