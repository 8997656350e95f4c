"""safetensors files: read as the library reads them, and refused when they lie."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from latentwire.tensor_file import TensorFileError, read_tensors

NAN = float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"a": (3, 5), "b": (7,), "c": (), "d": (0, 4), "e": (1, 3)}
    tensors = {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "t.safetensors", metadata={"format": "pt"})
    found = read_tensors(tmp_path / "t.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == np.float32
        assert found[name].flags.writeable
        np.testing.assert_array_equal(found[name], tensor.float().numpy())


def written(folder: Path, header: object, num_bytes: int = 8, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "t.safetensors"
    start = struct.pack("<Q", len(text) if length is None else length)
    path.write_bytes(start + text + bytes(num_bytes))
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8], **changes}


def test_a_file_without_tensors_is_empty(tmp_path: Path) -> None:
    assert read_tensors(written(tmp_path, {}, 0)) == {}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(shape=[1, 3])},
        {"a": entry(shape=[-1, -2])},
        {"a": entry(shape=[1.0, 2.0])},
        {"a": entry(shape=[True, 2])},
        {"a": entry(shape=["1", 2])},
        {"a": entry(shape=[2**40, 2**40])},
        {"a": entry(shape=[1] * 9 + [2])},
        {"a": entry(shape=2)},
        {"a": entry(shape=None)},
        {"a": entry(shape=[NAN, 2])},
        {"a": entry(dtype="F64", shape=[1])},
        {"a": entry(dtype="I8", shape=[8])},
        {"a": entry(dtype=None)},
        {"a": entry(dtype=["F32"])},
        {"a": entry(data_offsets=[8, 0])},
        {"a": entry(data_offsets=[0])},
        {"a": entry(data_offsets=[0, 8, 8])},
        {"a": entry(data_offsets=[-8, 0])},
        {"a": entry(data_offsets=[8, 16])},
        {"a": entry(data_offsets=[0.0, 8.0])},
        {"a": entry(data_offsets="08")},
        {"a": entry(shape=[1], data_offsets=[0, 4])},
        {"a": entry(shape=[1], data_offsets=[4, 8])},
        {"a": entry(), "b": entry()},
        {"a": entry(), "b": entry(shape=[1], data_offsets=[4, 8])},
        {"a": 3},
        {"a": None},
        {"a": {}},
        {},
        [],
        [1],
        3,
        None,
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(TensorFileError, match=r"^t\.safetensors is damaged$"):
        read_tensors(written(tmp_path, header))


@pytest.mark.parametrize("length", [0, 1, 2**24 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_length_that_lies_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(TensorFileError, match="is damaged"):
        read_tensors(written(tmp_path, {"a": entry()}, length=length))


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": entry()})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(TensorFileError):
            read_tensors(path)


@given(content=st.binary(max_size=64))
def test_random_bytes_are_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    with pytest.raises(TensorFileError):
        read_tensors(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of the file system are POSIX")
def test_a_pipe_is_refused_and_not_awaited(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TensorFileError, match="pipe is no file"):
        read_tensors(tmp_path / "pipe")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**34 + 1)
    with pytest.raises(TensorFileError, match="large is larger than 16 GiB"):
        read_tensors(tmp_path / "large")


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("no.safetensors")):
        read_tensors(tmp_path / "no.safetensors")
