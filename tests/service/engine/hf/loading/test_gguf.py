"""GGUF models: shards, files that cannot be read, and the cache of conversions."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire_service.engine.errors import (
    DamagedModelError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from latentwire_service.engine.hf.loader import LoadedModel, load_model
from latentwire_service.engine.hf.loading import content_key, gguf_conversion
from support.tiny_gguf import write_gguf
from support.tiny_models import build_model, qwen2_config

CPU = torch.device("cpu")
FILE = "tiny.gguf"
NUM_SHARDS = 4

pytest.importorskip("gguf")


def load(file: Path, cache_dir: Path) -> LoadedModel:
    return load_model(str(file), device=CPU, dtype=torch.float32, cache_dir=cache_dir)


def refusal(file: Path, cache_dir: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(file, cache_dir)
    assert len(str(caught.value)) < 270
    folder = cache_dir / "gguf"
    assert not folder.exists() or not list(folder.iterdir())
    return caught.value


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model(qwen2_config(), 0, CPU, torch.float32)


@pytest.fixture
def file(model: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_gguf(folder / FILE, model)
    return folder / FILE


@pytest.fixture
def shards(model: Any, tmp_path: Path) -> list[Path]:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_gguf(folder / FILE, model, tensors_per_shard=11)
    files = sorted(folder.iterdir())
    assert [each.name for each in files] == [
        f"tiny-{number:05}-of-{NUM_SHARDS:05}.gguf" for number in range(1, NUM_SHARDS + 1)
    ]
    return files


def assert_same(loaded: LoadedModel, model: Any) -> None:
    weights = loaded.model.state_dict()
    assert weights.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize("given", [0, 2, NUM_SHARDS - 1, "folder"])
def test_all_shards_are_read_whichever_is_named(
    given: int | str, shards: list[Path], model: Any, tmp_path: Path
) -> None:
    name = shards[given] if isinstance(given, int) else shards[0].parent
    loaded = load(name, tmp_path / "cache")
    assert loaded.model_id == "tiny"
    assert_same(loaded, model)


@pytest.mark.parametrize("lost", range(NUM_SHARDS))
def test_a_missing_shard_is_named(lost: int, shards: list[Path], tmp_path: Path) -> None:
    shards[lost].unlink()
    given = shards[(lost + 1) % NUM_SHARDS]
    refused = refusal(given, tmp_path / "cache")
    assert type(refused) is ModelNotFoundError
    assert str(refused) == (
        f"{given.name} cannot be converted: of the 4 shards of its model, 1 is missing: "
        f"{shards[lost].name}"
    )


def test_a_shard_under_another_name_is_not_taken_for_a_model(
    shards: list[Path], tmp_path: Path
) -> None:
    alone = shards[0].rename(tmp_path / "model.gguf")
    refused = refusal(alone, tmp_path / "cache")
    assert str(refused).startswith("model.gguf cannot be converted: it is shard 1 of 4; name the")


def test_shards_that_do_not_fit_together_are_refused(shards: list[Path], tmp_path: Path) -> None:
    shutil.copy(shards[0], shards[1])
    refused = refusal(shards[0], tmp_path / "cache")
    assert type(refused) is DamagedModelError
    assert f"{shards[1].name} is shard 1 of 4 by its content" in str(refused)


def test_a_folder_with_several_models_is_refused_with_their_names(
    file: Path, tmp_path: Path
) -> None:
    shutil.copy(file, file.with_name("other.gguf"))
    refused = refusal(file.parent, tmp_path / "cache")
    assert str(refused) == "models holds 2 GGUF models; name one: other.gguf, tiny.gguf"
    file.with_name("other.gguf").rename(file.with_name("mmproj-tiny.gguf"))
    assert load(file.parent, tmp_path / "cache").model_id == "tiny"


@pytest.mark.parametrize("seed", range(4))
def test_a_file_without_one_weight_is_refused_and_not_kept(
    seed: int, model: Any, tmp_path: Path
) -> None:
    names = sorted(name for name in model.state_dict() if name != "lm_head.weight")
    name = random.Random(seed).choice(names)
    write_gguf(tmp_path / FILE, model, without=name)
    refused = refusal(tmp_path / FILE, tmp_path / "cache")
    assert name in str(refused)
    assert str(refused).startswith(f"{FILE} cannot be converted: ")


def patched(file: Path, offset: int, value: bytes) -> None:
    content = bytearray(file.read_bytes())
    content[offset : offset + len(value)] = value
    file.write_bytes(content)


def replaced(file: Path, old: bytes, new: bytes) -> None:
    assert len(old) == len(new)
    file.write_bytes(file.read_bytes().replace(old, new))


def set_quantization(file: Path, kind: int) -> None:
    name = b"output_norm.weight"
    start = file.read_bytes().index(name) + len(name)
    patched(file, start + 4 + 8, struct.pack("<I", kind))


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (lambda file: file.write_bytes(b""), DamagedModelError, "it is empty"),
        (lambda file: patched(file, 0, b"JUNK"), DamagedModelError, "it is not a GGUF file"),
        (lambda file: patched(file, 0, b"tjgg"), UnsupportedModelError, "older than GGUF"),
        (
            lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
            DamagedModelError,
            "it is a pointer of Git LFS",
        ),
        (
            lambda file: patched(file, 4, struct.pack("<I", 1)),
            UnsupportedModelError,
            "it is GGUF version 1; convert the model again",
        ),
        (
            lambda file: patched(file, 4, struct.pack("<I", 9)),
            UnsupportedModelError,
            "it is GGUF version 9; only 2 and 3 are known",
        ),
        (
            lambda file: patched(file, 4, struct.pack(">I", 3)),
            UnsupportedModelError,
            "its byte order is big-endian",
        ),
        (lambda file: os.truncate(file, 5000), DamagedModelError, "it is cut short or damaged"),
        (
            lambda file: os.truncate(file, file.stat().st_size - 100),
            DamagedModelError,
            "it is cut short; ",
        ),
        (
            lambda file: set_quantization(file, 199),
            UnsupportedModelError,
            "output_norm.weight has quantization type 199, which is not known",
        ),
        (
            lambda file: replaced(file, b"qwen2", b"nomod"),
            ModelError,
            "nomod",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_told_by_what_it_is(
    damage: Any, error: type[ModelError], reason: str, file: Path, tmp_path: Path
) -> None:
    damage(file)
    refused = refusal(file, tmp_path / "cache")
    assert str(refused).startswith(f"{FILE} cannot be converted: ")
    assert reason in str(refused)
    assert isinstance(refused, error)


@pytest.mark.parametrize("length", range(0, 8000, 397))
def test_a_file_cut_anywhere_is_refused(length: int, file: Path, tmp_path: Path) -> None:
    os.truncate(file, length)
    assert type(refusal(file, tmp_path / "cache")) is DamagedModelError


def test_a_file_without_tokenizer_is_refused(model: Any, tmp_path: Path) -> None:
    write_gguf(tmp_path / FILE, model, has_tokenizer=False)
    refused = refusal(tmp_path / FILE, tmp_path / "cache")
    assert str(refused) == (
        "tiny.gguf cannot be converted: it has no tokenizer; use a file that has one"
    )


def conversions(cache_dir: Path) -> list[Path]:
    return sorted((cache_dir / "gguf").iterdir())


def test_equal_files_share_one_conversion(file: Path, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    copies = [file, tmp_path / "clone" / FILE, tmp_path / "another-name.gguf"]
    for copy in copies[1:]:
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    names = [load(copy, cache_dir).model_id for copy in copies]
    assert names == ["tiny", "tiny", "another-name"]
    assert len(conversions(cache_dir)) == 1


def test_a_file_that_changes_in_place_is_converted_again(file: Path, tmp_path: Path) -> None:
    """Even when its size and its times are those of before."""
    cache_dir, status = tmp_path / "cache", file.stat()
    first = load(file, cache_dir).model.model.norm.weight.clone()
    content = file.read_bytes()
    start = content.rindex(struct.pack("<f", 1.0) * 48)
    patched(file, start, struct.pack("<f", 3.0) * 48)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    load(file, cache_dir)
    assert len(conversions(cache_dir)) == 2
    assert torch.equal(first, torch.ones(48))


def test_a_digest_is_computed_once_for_a_settled_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = content_key.content_key([file], tmp_path / "digests", "")
    assert not (tmp_path / "digests").exists(), "the file may change within the clock's tick"
    monkeypatch.setattr(content_key, "_SETTLED_S", -1.0)
    assert content_key.content_key([file], tmp_path / "digests", "") == key
    monkeypatch.setattr("hashlib.file_digest", None)
    assert content_key.content_key([file], tmp_path / "digests", "") == key


def test_a_conversion_that_lost_a_file_is_made_again(
    file: Path, model: Any, tmp_path: Path
) -> None:
    cache_dir = tmp_path / "cache"
    load(file, cache_dir)
    (converted,) = conversions(cache_dir)
    (converted / "model.safetensors").write_bytes(b"short")
    assert_same(load(file, cache_dir), model)
    assert conversions(cache_dir) == [converted]


def test_conversions_that_nobody_uses_are_removed(file: Path, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    load(file, cache_dir)
    (used,) = conversions(cache_dir)
    day = 24 * 3600
    ages = {"older-format-0123456789abcdef": 31 * day, "recent": 29 * day, ".scratch": 2 * day}
    for name, age in ages.items():
        (cache_dir / "gguf" / name).mkdir()
        os.utime(cache_dir / "gguf" / name, (time.time() - age,) * 2)
    os.utime(used, (time.time() - 40 * day,) * 2)
    load(file, cache_dir)
    assert {path.name for path in conversions(cache_dir)} == {used.name, "recent"}
    assert time.time() - used.stat().st_mtime < day


# Two processes that convert at once are copies of one, so that the imports are done once.
CONVERT = """
import os, sys, time
from pathlib import Path
import torch
from latentwire_service.engine.hf.loader import load_model
from latentwire_service.engine.hf.loading import gguf_conversion

if sys.argv[3] == "hang":
    def hang(folder):
        print("written", flush=True)
        time.sleep(600)
    gguf_conversion._sync = hang
if sys.argv[3] == "twice":
    other = os.fork()
file, cache_dir = sys.argv[1], Path(sys.argv[2])
load_model(file, device=torch.device("cpu"), dtype=torch.float32, cache_dir=cache_dir)
if sys.argv[3] == "twice" and other:
    sys.exit(os.waitpid(other, 0)[1] != 0)
"""


def convert(file: Path, cache_dir: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CONVERT, str(file), str(cache_dir), how],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_conversion_is_never_used(file: Path, model: Any, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    with convert(file, cache_dir, "hang") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGKILL)
    (left,) = conversions(cache_dir)
    assert left.name.startswith(".")
    # Whatever the killed process wrote last is not to be believed.
    (left / "model.safetensors").write_bytes(b"half")
    assert_same(load(file, cache_dir), model)


@pytest.mark.slow
def test_two_processes_convert_at_once(file: Path, model: Any, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    with convert(file, cache_dir, "twice") as both:
        assert both.wait() == 0
    (converted,) = conversions(cache_dir)
    assert gguf_conversion._is_complete(converted)
    assert_same(load(file, cache_dir), model)


def test_a_cache_that_cannot_be_written_is_named_by_its_flag(file: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    with pytest.raises(ModelError) as caught:
        load(file, occupied)
    assert str(caught.value) == (
        "tiny.gguf cannot be converted: --cache-dir cannot be written: Not a directory"
    )


def test_a_full_cache_is_named_by_its_flag(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_conversion, "_sync", fail)
    assert str(refusal(file, tmp_path / "cache")) == (
        "tiny.gguf cannot be converted: No space left on device; conversions are written to "
        "--cache-dir"
    )
