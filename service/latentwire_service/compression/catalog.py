"""The compressors that a service offers: built in, of installed packages, loaded from directories.

A request names one of them; no text of a request is ever read as a path.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire.compressors import (
    Compressor,
    CompressorError,
    compressor_names,
    named_compressor,
)
from latentwire.compressors.base import Rows, checked_k
from latentwire.compressors.directory import read_compressor
from latentwire.compressors.learned import learned_compressor
from latentwire.compressors.manifest import CompressorManifest
from latentwire.compressors.training_free import TRAINING_FREE
from latentwire.protocol import CompressorInfo
from latentwire_service.engine.errors import InvalidParamsError

# A built-in compressor takes any k, so requests could make any number of them.
_MAX_KEPT = 64
_FIELDS = ("compressor", "k")


@dataclass(frozen=True, slots=True, eq=False)
class LearnedCompressor:
    """What a compressor directory holds.

    Attributes:
        manifest: has a name.
        tensors: float32, by name.
    """

    manifest: CompressorManifest
    tensors: Mapping[str, Rows]

    @property
    def name(self) -> str:
        """Its name in requests."""
        assert self.manifest.name is not None, "`read_compressor` sets it"
        return self.manifest.name

    def with_k(self, k: int | None) -> Compressor:
        """Return the compressor for a number of rows; None: its own.

        Raises:
            CompressorError: k is out of range or above that of the directory, or its parts do not
                fit each other.
        """
        if k is not None:
            checked_k(k, self.name)
        own = self.manifest.k
        if k is not None and own is not None and k > own:
            raise CompressorError(
                f"must be at most {own}, for which the compressor {self.name} was made, not {k}",
                "k",
            )
        return learned_compressor(self.manifest, self.tensors, k)


class CompressorCatalog:
    """Compressors by name. Making one may import a package: call `get` off the event loop.

    Args:
        learned: loaded from directories, with names that no other one has.

    Attributes:
        infos: all of them, as `/info` lists them; no code of a package runs for it.
    """

    def __init__(self, learned: Sequence[LearnedCompressor] = ()) -> None:
        self._learned = {each.name: each for each in learned}
        # Read once: it looks at the files of every installed package.
        self._named = compressor_names()
        # The hash of a large compressor takes milliseconds.
        self.infos = tuple(self._info(name) for name in self.names)
        self._made: OrderedDict[tuple[str, int | None], Compressor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """All names: built-in ones, those of packages, then the loaded ones."""
        return [*self._named, *self._learned]

    def package_of(self, name: str) -> str | None:
        """Return the name if the compressor is of another package, else None."""
        return name if name in self._named and name not in TRAINING_FREE else None

    def get(self, name: str, k: int | None, hidden_size: int) -> Compressor:
        """Return a compressor.

        Args:
            name: one of `names`.
            k: most rows that it shall return; None: its own.
            hidden_size: width of the rows that it will get.

        Raises:
            InvalidParamsError: there is none of this name, it cannot be made with this k, or it
                reads rows of another width.
        """
        try:
            compressor = self._get(name, k)
        except CompressorError as error:
            field = error.field if error.field in _FIELDS else "compressor"
            raise InvalidParamsError(field, error.reason) from error
        if compressor.source_width not in (None, hidden_size):
            raise InvalidParamsError(
                "compressor",
                f"{name} reads rows of width {compressor.source_width}, and the model's have "
                f"{hidden_size}; there are: {', '.join(self._fitting(hidden_size))}",
            )
        return compressor

    def _get(self, name: str, k: int | None) -> Compressor:
        with self._lock:
            kept = self._made.get((name, k))
            if kept is not None:
                self._made.move_to_end((name, k))
                return kept
        # Not under the lock: a package may take long, and must not delay requests for others.
        made = self._make(name, k)
        with self._lock:
            self._made[name, k] = made
            while len(self._made) > _MAX_KEPT:
                self._made.popitem(last=False)
        return made

    def _make(self, name: str, k: int | None) -> Compressor:
        if name in self._learned:
            return self._learned[name].with_k(k)
        if name not in self._named:
            raise CompressorError(
                f"there is no compressor {name!r}; there are: {', '.join(self.names)}",
                "compressor",
            )
        return named_compressor(name, k)

    def _fitting(self, hidden_size: int) -> list[str]:
        widths = {name: each.manifest.source.hidden_size for name, each in self._learned.items()}
        return [name for name in self.names if widths.get(name, hidden_size) == hidden_size]

    def _info(self, name: str) -> CompressorInfo:
        """Describe a compressor without running the code of a package."""
        if name in self._learned:
            own = self._learned[name].with_k(None)
            return CompressorInfo(
                name=name,
                kind=own.kind,
                k=own.k,
                content_hash=own.content_hash,
                parameters=dict(own.parameters),
                output=own.output,
                source_width=own.source_width,
            )
        if name in TRAINING_FREE:
            example = named_compressor(name, 1)
            return CompressorInfo(name=name, kind=example.kind, output=example.output)
        return CompressorInfo(name=name)


def load_catalog(directories: Iterable[Path]) -> CompressorCatalog:
    """Load compressors from their directories.

    Raises:
        CompressorError: a directory holds no compressor that can be used, or its name is taken; the
            message begins with the directory's name.
    """
    taken = set(compressor_names())
    learned: list[LearnedCompressor] = []
    for directory in directories:
        try:
            read = LearnedCompressor(*read_compressor(directory))
            # Its tensors may not be those of its kind.
            read.with_k(None)
            if read.name in taken:
                raise CompressorError(f"the name {read.name} is taken")
        except CompressorError as error:
            name = directory.resolve().name or "/"
            raise CompressorError(f"compressor {name}: {error.reason}") from error
        taken.add(read.name)
        learned.append(read)
    return CompressorCatalog(learned)
