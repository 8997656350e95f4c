"""One run of a collection: the values that its parts share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from latentwire_batch.compression.facts import CompressorFacts
from latentwire_batch.compression.settings import chosen_compressors
from latentwire_batch.compression.stored_form import StoredForm
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.dispatch.session import SessionProgress
from latentwire_batch.errors import InputError
from latentwire_batch.output.destination import Destination, destination_of
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.run_settings import RunSettings
from latentwire_batch.shards.shard import ALL_ROWS, Shard
from latentwire_batch.tasks.hub_dataset import HubDataset
from latentwire_batch.tasks.inputs import NumberedRow, SplitRows, TaskInputs
from latentwire_batch.tasks.opening import OpenedTasks
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import DataIdentity, Row, UnusableRow, identify


@dataclass(frozen=True)
class Run:
    """One process's run of one collection.

    Attributes:
        settings: given by the user.
        source: the input.
        data: number and digest of the input's rows.
        destination: where the finished files go.
        console: for notices and progress.
        rank: of this process.
        hub_datasets: those of the hub that are the input; empty for files and folders.
        num_unusable: rows of this run that are set aside.
        form: in which latents are stored.
        shard: to which the rows of this run belong; None: all rows are its own.
        splits: of the input, for the hub layout; empty: the classic layout.
        progress: see `SessionPlan`.
    """

    settings: CollectSettings
    source: TaskInputs
    data: DataIdentity
    destination: Destination
    console: Console
    rank: Rank
    hub_datasets: tuple[HubDataset, ...] = ()
    num_unusable: int = 0
    form: StoredForm = field(default_factory=StoredForm)
    shard: Shard | None = None
    splits: tuple[SplitRows, ...] = ()
    progress: Callable[[int], SessionProgress] | None = None

    @classmethod
    def of(
        cls,
        settings: CollectSettings,
        console: Console,
        rank: Rank,
        tasks: OpenedTasks,
        shard: Shard | None = None,
    ) -> Run:
        """Read the input once, so that a bad row shows before anything is sent or written.

        Args:
            settings: given by the user.
            console: for notices and progress.
            rank: of this process.
            tasks: the input that the settings name.
            shard: to collect; None: all rows.

        Raises:
            UsageError: when a compressor cannot be made, or the place of the output not be opened.
            InputError: when the input cannot be read, or holds no rows.
        """
        destination = destination_of(settings.output_dir, settings.work_dir, console.say)
        compressors = chosen_compressors(settings, settings.k)
        form = StoredForm(compressors, settings.replace, settings.storage_dtype)
        sources = tuple(
            TaskSource(part.path, settings.row_fields, settings.limit, settings.skip_invalid)
            for part in tasks.parts
        )
        source = TaskInputs(tasks.parts, sources, settings.limit)
        set_aside = _SetAside(shard or ALL_ROWS, len(sources))
        try:
            data = identify(set_aside.watch(source.numbered_rows()))
        except InputError as error:
            raise InputError(f"--dataset: {error}") from error
        if data.num_rows == set_aside.count:
            raise InputError(f"--dataset: holds no {set_aside.of_all}")
        if set_aside.count and rank.index == 0:
            console.say(f"--skip-invalid: {set_aside}")
        hubs, own = tasks.hub_datasets, set_aside.own_count
        splits = source.splits(set_aside.part_counts) if settings.layout == "hub" else ()
        return cls(
            settings, source, data, destination, console, rank, hubs, own, form, shard, splits
        )

    @property
    def layout(self) -> OutputLayout:
        """Of the directory in which the run works."""
        return self.destination.layout

    @property
    def num_rows(self) -> int:
        """Rows of this run: those of the input, or of its shard."""
        return (self.shard or ALL_ROWS).num_rows(self.data.num_rows)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names of the splits, in order."""
        return tuple(split.name for split in self.splits)

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
            hub_datasets=self.hub_datasets,
            seed=seed,
            requested_model=None if settings.replica else _model_name(settings.model),
            shard=self.shard,
            splits=self.splits,
        )


class _SetAside:
    """Counts the rows that are set aside, in all and of one shard, and remembers the first.

    Attributes:
        part_counts: the rows of each part of the input.
    """

    def __init__(self, shard: Shard, num_parts: int) -> None:
        self.part_counts = [0] * num_parts
        self.count = self.own_count = 0
        self._shard = shard
        self._first: UnusableRow | None = None

    def watch(self, rows: Iterable[NumberedRow]) -> Iterator[Row | UnusableRow]:
        """Pass all rows on."""
        for numbered in rows:
            row = numbered.row
            self.part_counts[numbered.part] += 1
            if isinstance(row, UnusableRow):
                self.count += 1
                self.own_count += self._shard.holds(row.index)
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
