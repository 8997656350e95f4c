"""One run of a collection: the values that its parts share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from latentwire_batch.compression.facts import CompressorFacts
from latentwire_batch.compression.settings import chosen_compressors
from latentwire_batch.compression.stored_form import StoredForm
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.errors import InputError
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.run_settings import RunSettings
from latentwire_batch.tasks.hub_dataset import HubDataset
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import DataIdentity, Row, UnusableRow, identify


@dataclass(frozen=True)
class Run:
    """One process's run of one collection.

    Attributes:
        settings: given by the user.
        source: the input.
        data: number and digest of the input's rows.
        layout: of the output.
        console: for notices and progress.
        rank: of this process.
        hub: the dataset of the hub that is the input; None for a file or folder.
        num_unusable: rows of the input that are set aside.
        form: in which latents are stored.
    """

    settings: CollectSettings
    source: TaskSource
    data: DataIdentity
    layout: OutputLayout
    console: Console
    rank: Rank
    hub: HubDataset | None = None
    num_unusable: int = 0
    form: StoredForm = field(default_factory=StoredForm)

    @classmethod
    def of(
        cls,
        settings: CollectSettings,
        console: Console,
        rank: Rank,
        path: Path | None = None,
        hub: HubDataset | None = None,
    ) -> Run:
        """Read the input once, so that a bad row shows before anything is sent or written.

        Args:
            settings: given by the user.
            console: for notices and progress.
            rank: of this process.
            path: of the input; None: the settings' own.
            hub: the dataset of the hub of which `path` is a copy; None for another input.

        Raises:
            UsageError: when a compressor cannot be made.
            InputError: when the input cannot be read, or holds no rows.
        """
        compressors = chosen_compressors(settings, settings.k)
        form = StoredForm(compressors, settings.replace, settings.storage_dtype)
        source = TaskSource(
            path or settings.dataset, settings.row_fields, settings.limit, settings.skip_invalid
        )
        set_aside = _SetAside()
        try:
            data = identify(set_aside.watch(source.all_rows()))
        except InputError as error:
            raise InputError(f"--dataset: {error}") from error
        if data.num_rows == set_aside.count:
            raise InputError(f"--dataset: holds no {set_aside.of_all}")
        if set_aside.count and rank.index == 0:
            console.say(f"--skip-invalid: {set_aside}")
        layout = OutputLayout(settings.output_dir)
        return cls(settings, source, data, layout, console, rank, hub, set_aside.count, form)

    def wanted_settings(self, seed: int | None) -> RunSettings:
        """Return the settings that are known before a replica has answered.

        Args:
            seed: of the dataset; None while any seed would do.
        """
        settings = self.settings
        return RunSettings(
            data=self.data,
            # With a compressor, --k is its k, and all rows are collected.
            k=None if self.form.compressors else settings.k,
            options=settings.plan_options,
            columns=settings.columns,
            storage_dtype=settings.storage_dtype,
            compression=CompressorFacts.of(self.form),
            fields=settings.row_fields,
            hub_dataset=self.hub,
            seed=seed,
            requested_model=None if settings.replica else _model_name(settings.model),
        )


class _SetAside:
    """Counts the rows that are set aside, and remembers the first."""

    def __init__(self) -> None:
        self.count = 0
        self._first: UnusableRow | None = None

    def watch(self, rows: Iterable[Row | UnusableRow]) -> Iterator[Row | UnusableRow]:
        """Pass all rows on."""
        for row in rows:
            if isinstance(row, UnusableRow):
                self.count += 1
                self._first = self._first or row
            yield row

    @property
    def of_all(self) -> str:
        """Name what the input lacks when it has no other rows."""
        return f"row that can be used: {self._first.reason}" if self._first else "rows"

    def __str__(self) -> str:
        assert self._first is not None
        rows = "1 row is" if self.count == 1 else f"{self.count} rows are"
        return f"{rows} set aside; the first: {self._first.reason}"


def _model_name(model: str) -> str:
    """Name a model without the folder that holds it."""
    return Path(model).name if Path(model).exists() or model.startswith((".", "/", "~")) else model
