"""GGUF models in one file or in shards, and folders of them."""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from latentwire_service.engine.errors import (
    DamagedModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from latentwire_service.engine.hf.loading.gguf_format import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    GgufHeader,
    read_header,
)

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_SHOWN_NAMES = 3
_COPIED_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model in GGUF files.

    Attributes:
        model_id: the file's name without its ending, and without the number of a shard.
        shards: one header per file, in order.
    """

    model_id: str
    shards: Sequence[GgufHeader]

    @property
    def name(self) -> str:
        """The name of the first file."""
        return self.shards[0].file.name

    @property
    def files(self) -> Sequence[Path]:
        """All files, in order."""
        return [shard.file for shard in self.shards]


def gguf_in_folder(folder: Path) -> Path | None:
    """Find the GGUF model of a directory that has no config.json.

    Returns:
        The first file of the model; None if there is no GGUF file.

    Raises:
        UnsupportedModelError: there are several models.
    """
    if (folder / "config.json").is_file():
        return None
    models: dict[str, Path] = {}
    for file in sorted(folder.glob("*.gguf")):
        models.setdefault(_model_key(file), file)
    # The projector of a vision model lies next to the language model.
    files = [file for key, file in models.items() if not key.startswith("mmproj")]
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:_SHOWN_NAMES])
        more = f" and {len(files) - _SHOWN_NAMES} more" if len(files) > _SHOWN_NAMES else ""
        raise UnsupportedModelError(
            f"{folder.resolve().name} holds {len(files)} GGUF models; name one: {names}{more}"
        )
    return files[0] if files else None


def read_model(file: Path) -> GgufModel:
    """Read the headers of a model, given any one of its files.

    Raises:
        ModelNotFoundError: a shard is missing.
        DamagedModelError: a file is no GGUF file or cut short, or the shards do not fit together.
        UnsupportedModelError: a file's version, byte order or quantization cannot be read.
    """
    found = _SHARD.fullmatch(file.name)
    if found is None:
        header = read_header(file)
        _check_is_whole(header)
        return GgufModel(re.sub(r"\.gguf$", "", file.name, flags=re.IGNORECASE), [header])
    count = int(found["count"])
    files = [
        file.with_name(f"{found['stem']}-{number:05}-of-{found['count']}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [each.name for each in files if not each.is_file()]
    if missing:
        names = ", ".join(missing[:_SHOWN_NAMES])
        more = f" and {len(missing) - _SHOWN_NAMES} more" if len(missing) > _SHOWN_NAMES else ""
        raise ModelNotFoundError(
            f"{file.name} cannot be converted: of the {count} shards of its model, "
            f"{len(missing)} {'is' if len(missing) == 1 else 'are'} missing: {names}{more}"
        )
    shards = [read_header(each) for each in files]
    _check_fit(file.name, shards)
    return GgufModel(found["stem"], shards)


def write_merged(model: GgufModel, target: Path) -> None:
    """Write all shards as one file, tensors as they are.

    Raises:
        OSError: a file cannot be read or written.
    """
    first = model.shards[0]
    tensors = [(shard, tensor) for shard in model.shards for tensor in shard.tensors]
    alignment = first.alignment
    with target.open("wb") as output:
        output.write(MAGIC + struct.pack("<IQQ", first.version, len(tensors), first.num_fields))
        start, end = first.fields_range
        _copy(first.file, start, end - start, output)
        offset = 0
        for _, tensor in tensors:
            name = tensor.name.encode()
            sizes = tensor.dimensions
            output.write(struct.pack("<Q", len(name)) + name)
            output.write(struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
            output.write(struct.pack("<IQ", tensor.kind, offset))
            offset += _aligned(tensor.num_bytes, alignment)
        for shard, tensor in tensors:
            output.write(bytes(_aligned(output.tell(), alignment) - output.tell()))
            _copy(shard.file, tensor.start, tensor.num_bytes, output)
        output.write(bytes(_aligned(output.tell(), alignment) - output.tell()))


def _model_key(file: Path) -> str:
    found = _SHARD.fullmatch(file.name)
    return f"{found['stem']}-of-{found['count']}" if found else file.name


def _check_is_whole(header: GgufHeader) -> None:
    """Refuse a shard whose name does not lead to the others."""
    count = header.fields.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        number = int(header.fields.get("split.no", 0)) + 1
        raise UnsupportedModelError(
            f"{header.file.name} cannot be converted: it is shard {number} of {count}; name the "
            f"files as they were, ...-{number:05}-of-{count:05}.gguf, in one directory"
        )


def _check_fit(name: str, shards: Sequence[GgufHeader]) -> None:
    failure = f"{name} cannot be converted"
    for number, shard in enumerate(shards):
        stated = shard.fields.get("split.no", number), shard.fields.get("split.count", len(shards))
        if stated != (number, len(shards)):
            raise DamagedModelError(
                f"{failure}: {shard.file.name} is shard {int(stated[0]) + 1} of {stated[1]} by its "
                "content"
            )
    names = [tensor.name for shard in shards for tensor in shard.tensors]
    if len(set(names)) < len(names):
        twice = next(each for each, same in itertools.groupby(sorted(names)) if len([*same]) > 1)
        raise DamagedModelError(f"{failure}: two shards hold {twice}")
    total = shards[0].fields.get("split.tensors.count", len(names))
    if total != len(names):
        raise DamagedModelError(
            f"{failure}: its shards hold {len(names)} tensors; the model has {total}"
        )


def _aligned(length: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    return math.ceil(length / alignment) * alignment


def _copy(file: Path, start: int, length: int, output: IO[bytes]) -> None:
    with file.open("rb") as source:
        source.seek(start)
        while length > 0:
            chunk = source.read(min(length, _COPIED_BYTES))
            if not chunk:
                raise OSError(f"{file.name} became shorter while it was read")
            output.write(chunk)
            length -= len(chunk)
