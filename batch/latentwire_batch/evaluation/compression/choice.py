"""From `--compressor` to codecs, and what a learned compressor says about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from latentwire.compressors import CompressorError, CompressorSpec, compressor_names
from latentwire.compressors.directory import read_compressor
from latentwire.compressors.manifest import CompressorManifest
from latentwire.number_formats import (
    DEFAULT_ROTATION,
    NUMBER_FORMATS,
    NumberFormat,
    has_scales,
)
from latentwire_batch.errors import UsageError
from latentwire_batch.evaluation.compression.codecs import FULL, Codec
from latentwire_batch.evaluation.split import Fitted

# Formats without their rotation: controls, which show what the rotation is worth.
_UNROTATED = "-unrotated"
_FORMATS = (
    *NUMBER_FORMATS,
    *(name + _UNROTATED for name in NUMBER_FORMATS if has_scales(name)),
)


@dataclass(frozen=True, eq=False)
class Choice:
    """A codec, as `--compressor` names it.

    Attributes:
        codec: that it names.
        manifest: of a learned compressor.
        directory_label: label with the name of its directory, where others have its own name.
    """

    codec: Codec
    manifest: CompressorManifest | None = None
    directory_label: str | None = None

    @property
    def name(self) -> str:
        """The compressor in words, for notices and errors."""
        compressor = self.codec.compressor
        return "the full latent" if compressor is None else f"compressor {compressor.name}"

    @property
    def labels(self) -> list[str]:
        """The labels that it may have, the best first."""
        return [label for label in (self.codec.label, self.directory_label) if label is not None]

    def with_label(self, label: str) -> Choice:
        """Return it with this label."""
        return replace(self, codec=replace(self.codec, label=label))

    def has_values_of(self, other: Choice) -> bool:
        """Whether both have the same values."""
        facts = [each.codec.to_json() | {"name": None} for each in (self, other)]
        return facts[0] == facts[1]


def choose_codecs(given: Sequence[str], default_k: int | None) -> list[Choice]:
    """Make the codecs; the full latent is the first, whether it is given or not.

    Args:
        given: values of `--compressor`: `NAME|DIR[:K][@DTYPE]`, where the name `full` stands for no
            compressor, and int8 and int4 may end with `-unrotated`.
        default_k: of those that name no k.

    Raises:
        UsageError: one of them cannot be made, or two of them have one name.
    """
    found = {FULL: Choice(Codec(FULL))}
    for text in given:
        try:
            choice = _choice(CompressorSpec.parse(text, _FORMATS), default_k)
        except CompressorError as error:
            raise UsageError(f"--compressor: {text}: {_reason(error, text)}") from error
        for label in choice.labels:
            if found.setdefault(label, choice.with_label(label)).has_values_of(choice):
                break
        else:
            raise UsageError(f"--compressor: {text}: another compressor has this name")
    return list(found.values())


def fitted_compressors(choices: Sequence[Choice]) -> list[Fitted]:
    """Return the learned compressors, each once."""
    found = {
        choice.name: Fitted("--compressor", choice.name, choice.manifest.held_out)
        for choice in choices
        if choice.manifest is not None
    }
    return list(found.values())


def _choice(spec: CompressorSpec, default_k: int | None) -> Choice:
    dtype, _, rest = (spec.dtype or "float32").partition("-")
    rotation = None if rest else DEFAULT_ROTATION
    ending = "" if spec.dtype in (None, "float32") else f"@{spec.dtype}"
    number_format = cast("NumberFormat", dtype)
    if spec.given == FULL:
        if spec.k is not None:
            raise CompressorError("the full latent has all of its rows, so it takes no k")
        return Choice(Codec(FULL + ending, None, number_format, rotation))
    compressor = spec.make(default_k)
    count = "" if compressor.k is None else f":{compressor.k}"
    codec = Codec(f"{compressor.name}{count}{ending}", compressor, number_format, rotation)
    if spec.given in compressor_names():
        return Choice(codec)
    path = Path(spec.given)
    return Choice(codec, read_compressor(path)[0], f"{path.resolve().name}{count}{ending}")


def _reason(error: CompressorError, text: str) -> str:
    return error.reason if error.field in (text, "compressor") else str(error)
