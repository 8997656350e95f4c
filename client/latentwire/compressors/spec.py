"""`NAME|DIR[:K][@DTYPE]`: how command lines name a compressor."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from latentwire.compressors.base import MAX_K, Compressor, CompressorError
from latentwire.compressors.registry import make_compressor
from latentwire.number_formats import NUMBER_FORMATS

# A part that holds one of these belongs to a path: `./a@b/` names a directory.
_PATH = re.compile(r"[./\\]")


@dataclass(frozen=True)
class CompressorSpec:
    """One compressor on a command line.

    Attributes:
        given: name of a compressor, or the directory of one.
        k: most rows that it shall return; None: the command's `--k`, or the compressor's own.
        dtype: number format of its values; None: the command's.
    """

    given: str
    k: int | None = None
    dtype: str | None = None

    @classmethod
    def parse(cls, text: str, dtypes: Collection[str] = NUMBER_FORMATS) -> CompressorSpec:
        """Read a specification such as `mean-pool:8@int8`.

        A directory whose name holds `:` or `@` is written with a slash at its end.

        Args:
            text: `NAME|DIR[:K][@DTYPE]`.
            dtypes: number formats that the command knows.

        Raises:
            CompressorError: it has another form, or the number format is unknown.
        """
        given, dtype = _split(text, "@")
        if dtype is not None and dtype not in dtypes:
            raise CompressorError(
                f"the number format after @ must be one of {', '.join(dtypes)}", text
            )
        given, count = _split(given, ":")
        if not given:
            raise CompressorError("must be like NAME:K or DIRECTORY", text or "compressor")
        return cls(given, None if count is None else _k(count, text), dtype)

    def make(self, default_k: int | None = None) -> Compressor:
        """Make the compressor.

        Args:
            default_k: for a specification without K.

        Raises:
            CompressorError: there is no such compressor, or it cannot be made with this k.
        """
        return make_compressor(self.given, default_k if self.k is None else self.k)

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        count = "" if self.k is None else f":{self.k}"
        return f"{self.given}{count}" + (f"@{self.dtype}" if self.dtype else "")


def _split(text: str, mark: str) -> tuple[str, str | None]:
    """Return what is before and after the last mark; None: nothing is after it."""
    before, found, after = text.rpartition(mark)
    if not found or _PATH.search(after):
        return text, None
    return before, after


def _k(count: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", count) or not 1 <= int(count) <= MAX_K:
        raise CompressorError(f"k after the colon must be from 1 to {MAX_K}", text)
    return int(count)
