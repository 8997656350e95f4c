"""Compressors that were fitted to a dataset: inference in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from latentwire.compressors.base import (
    COMPRESSED,
    Compressor,
    CompressorError,
    Output,
    Rows,
    checked_count,
    checked_result,
    checked_rows,
)
from latentwire.compressors.layers import POSITION_WIDTH, Array
from latentwire.compressors.learned_config import (
    AutoencoderConfig,
    BridgeConfig,
    MixerConfig,
    ResamplerConfig,
    RowConfig,
    SelectorConfig,
)
from latentwire.compressors.manifest import MANIFEST_NAME, TENSORS_NAME, CompressorManifest
from latentwire.compressors.message_map import MessageMap
from latentwire.compressors.resampling import ResamplerMap
from latentwire.compressors.row_codes import Autoencoder, Pca, RowMap
from latentwire.compressors.training_free import training_free
from latentwire.validation import describe

Shapes = dict[str, tuple[int, ...]]
ConfigT = TypeVar("ConfigT", bound=BaseModel)


class LearnedMap(Protocol):
    """The arithmetic of a learned compressor, for the number of rows that it was trained with."""

    def compress(self, rows: Rows) -> dict[str, Array]:
        """Compress checked rows `[L, H]`; each array is two-dimensional, of any float dtype."""

    def checked(self, arrays: Mapping[str, Rows]) -> dict[str, Rows]:
        """Return the arrays as float32; raise `CompressorError` if they cannot be of this map."""

    def decompress(self, arrays: dict[str, Rows], num_rows: int) -> Array:
        """Estimate `[num_rows, H]` of checked arrays; the main one's last rows may be missing."""


@dataclass(frozen=True, eq=False)
class LearnedCompressor:
    """A compressor of a directory, as `Compressor`.

    Attributes:
        name: of the manifest.
        kind: of the manifest.
        k: most rows that it returns: the first ones of those that it was trained to return.
        parameters: see `CompressorManifest.parameters`.
        content_hash: see `CompressorManifest.hash_with`.
        source_width: width of the rows that it reads.
        output: what its main array holds.
        map: its arithmetic.
    """

    name: str
    kind: str
    k: int | None
    parameters: Mapping[str, Any]
    content_hash: str
    source_width: int
    output: Output
    map: LearnedMap

    def compress(self, rows: Rows) -> dict[str, Rows]:
        """As `Compressor.compress`."""
        checked = checked_rows(rows, self.source_width)
        with np.errstate(all="ignore"):
            arrays = self.map.compress(checked)
        arrays[COMPRESSED] = arrays[COMPRESSED][: self.k]
        return {name: checked_result(array) for name, array in arrays.items()}

    def decompress(self, arrays: Mapping[str, Rows], num_rows: int) -> Rows:
        """As `Compressor.decompress`."""
        checked = self.map.checked(arrays)
        checked_count(num_rows, len(checked[COMPRESSED]), self.k)
        with np.errstate(all="ignore"):
            return checked_result(self.map.decompress(checked, num_rows))


def learned_compressor(
    manifest: CompressorManifest, tensors: Mapping[str, Rows], k: int | None
) -> Compressor:
    """Make the compressor of a directory.

    Args:
        manifest: of the directory; its `name` is set.
        tensors: of the directory, float32 and finite, by name.
        k: most rows that it shall return, at most the manifest's; None: the manifest's.

    Raises:
        CompressorError: a tensor is missing, is unknown or has a wrong shape, or `config` is wrong.
    """
    assert manifest.name is not None, "it is set by the reader"
    chosen = manifest.k if k is None else k
    return LearnedCompressor(
        name=manifest.name,
        kind=manifest.kind,
        k=chosen,
        parameters=manifest.parameters(chosen),
        content_hash=manifest.hash_with(tensors, chosen),
        source_width=manifest.source.hidden_size,
        output=manifest.output,
        map=_map(manifest, tensors, chosen),
    )


def _map(manifest: CompressorManifest, tensors: Mapping[str, Rows], k: int | None) -> LearnedMap:
    if manifest.kind == "pca":
        return _row_map(manifest, _config(manifest, RowConfig), tensors)
    if manifest.kind == "autoencoder":
        return _row_map(manifest, _config(manifest, AutoencoderConfig), tensors)
    if manifest.kind == "resampler" and "bridge" not in manifest.config:
        return _resampler_map(manifest, _config(manifest, ResamplerConfig), tensors)
    kind = SelectorConfig if manifest.kind == "selector" else MixerConfig
    return _message_map(manifest, _config(manifest, kind), tensors, k)


def _row_map(
    manifest: CompressorManifest, config: RowConfig, tensors: Mapping[str, Rows]
) -> RowMap:
    width, dim = manifest.source.hidden_size, manifest.dim
    if (config.rows is None) != (manifest.k is None):
        raise _wrong("config.rows and k: both or none are required")
    reduction = None if config.rows is None else training_free(config.rows, manifest.k)
    if isinstance(config, AutoencoderConfig):
        check_shapes(tensors, _autoencoder_shapes(width, dim, config.intermediate_size))
        return RowMap(Autoencoder(tensors), reduction, dim)
    check_shapes(tensors, {"mean": (width,), "components": (dim, width)})
    return RowMap(Pca(tensors), reduction, dim)


def _resampler_map(
    manifest: CompressorManifest, config: ResamplerConfig, tensors: Mapping[str, Rows]
) -> ResamplerMap:
    width, dim, read = manifest.source.hidden_size, manifest.dim, config.attention_size
    if read % config.num_heads or config.slots != manifest.k:
        raise _wrong("config: num_heads must divide attention_size, and slots must be k")
    inner = config.intermediate_size
    shapes: Shapes = {"mean": (width,), "deviation": (width,), "query": (config.slots, read)}
    shapes |= {"encode.weight": (dim, width), "decode.weight": (width, dim)}
    for name, size in (("norm", read), ("norm2", dim), ("back_norm", read)):
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    sizes = {
        **{"read": (read, width), "place": (read, POSITION_WIDTH), "k": (read, read)},
        **{"v": (read, read), "o": (dim, read), "up": (inner, dim), "down": (dim, inner)},
        **{"asked": (read, POSITION_WIDTH), "back_k": (read, dim), "back_v": (read, dim)},
        **{"back_up": (inner, read), "back_down": (width, inner)},
    }
    for name, shape in sizes.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    check_shapes(tensors, shapes)
    return ResamplerMap(tensors, config, dim)


def _message_map(
    manifest: CompressorManifest,
    config: SelectorConfig,
    tensors: Mapping[str, Rows],
    k: int | None,
) -> MessageMap:
    source_width, width = manifest.source.hidden_size, manifest.dim
    if k is None or manifest.k is None:
        raise _wrong("k: is required")
    shapes = _bridge_shapes(config.bridge, source_width, width)
    shapes |= _scorer_shapes(source_width, config.scorer_size)
    shapes |= {"back.weight": (width, source_width), "back.bias": (source_width,)}
    if isinstance(config, MixerConfig):
        if width % config.num_heads or config.slots != manifest.k:
            raise _wrong("config: num_heads must divide dim, and slots must be k")
        shapes |= _mixer_shapes(width, config)
    check_shapes(tensors, shapes)
    return MessageMap(tensors, config, k, width)


def _bridge_shapes(config: BridgeConfig, source_width: int, width: int) -> Shapes:
    read = config.window * source_width
    shapes: Shapes = {"mean": (source_width,), "weight": (read, width), "bias": (width,)}
    shapes["factor"] = ()
    if config.intermediate_size is not None and config.kind == "mlp":
        inner = config.intermediate_size
        shapes |= {"norm.weight": (read,), "norm.bias": (read,)}
        shapes |= {"up.weight": (inner, read), "up.bias": (inner,)}
        shapes |= {"down.weight": (width, inner), "down.bias": (width,)}
    return {f"bridge.{name}": shape for name, shape in shapes.items()}


def _scorer_shapes(source_width: int, size: int) -> Shapes:
    read = 2 * source_width
    shapes: Shapes = {"norm.weight": (read,), "norm.bias": (read,)}
    shapes |= {"up.weight": (size, read + 2), "up.bias": (size,)}
    shapes |= {"out.weight": (1, size), "out.bias": (1,)}
    return {f"scorer.{name}": shape for name, shape in shapes.items()}


def _mixer_shapes(width: int, config: MixerConfig) -> Shapes:
    inner = config.intermediate_size
    shapes: Shapes = {"query": (config.slots, width)}
    for name in ("norm", "norm2"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name in ("q", "k", "v", "o"):
        shapes |= {f"{name}.weight": (width, width), f"{name}.bias": (width,)}
    shapes |= {"up.weight": (inner, width), "up.bias": (inner,)}
    return shapes | {"down.weight": (width, inner), "down.bias": (width,)}


def _autoencoder_shapes(width: int, dim: int, inner: int) -> Shapes:
    shapes: Shapes = {"mean": (width,), "deviation": (width,)}
    for name, read, made in (("encode", width, dim), ("decode", dim, width)):
        shapes |= {f"{name}.weight": (made, read)}
        shapes |= {f"{name}_up.weight": (inner, read), f"{name}_up.bias": (inner,)}
        shapes |= {f"{name}_down.weight": (made, inner), f"{name}_down.bias": (made,)}
    return shapes


def check_shapes(given: Mapping[str, Rows], expected: Shapes) -> None:
    """Compare tensors with what their kind has.

    Raises:
        CompressorError: one is missing, is unknown or has a wrong shape.
    """
    missing = sorted(expected.keys() - given.keys())
    if missing:
        raise _wrong(f"has no tensor {', '.join(missing)[:200]}", TENSORS_NAME)
    unknown = sorted(given.keys() - expected.keys())
    if unknown:
        raise _wrong(f"has a tensor that its kind does not: {unknown[0][:64]}", TENSORS_NAME)
    for name, shape in expected.items():
        if given[name].shape != shape:
            raise _wrong(
                f"tensor {name} has shape {list(given[name].shape)}; {MANIFEST_NAME} states "
                f"{list(shape)}",
                TENSORS_NAME,
            )


def _config(manifest: CompressorManifest, kind: type[ConfigT]) -> ConfigT:
    try:
        return kind.model_validate(manifest.config)
    except ValidationError as error:
        raise _wrong(f"config.{describe(error)}") from error


def _wrong(reason: str, file: str = MANIFEST_NAME) -> CompressorError:
    return CompressorError(f"{file}: {reason}", "compressor")
