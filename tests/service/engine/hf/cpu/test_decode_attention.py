"""Decode attention in C against the formula in double precision, and without a compiler."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from latentwire_service.engine.hf.cpu import c_extension
from latentwire_service.engine.hf.cpu.decode_attention import decode_attention, packed_attention

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler"
)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    c_extension.load.cache_clear()
    monkeypatch.setenv("CC", "a-missing-compiler")
    yield
    c_extension.load.cache_clear()


class Case:
    """Slots of different lengths in a cache that is longer than the part that attention reads."""

    def __init__(
        self,
        lengths: list[int],
        dtype: torch.dtype = torch.float32,
        num_kv_heads: int = 2,
        group: int = 3,
        key_dim: int = 64,
        value_dim: int = 64,
        window: int | None = None,
    ) -> None:
        torch.manual_seed(len(lengths) + key_dim)
        batch, longest = len(lengths), max(lengths)
        self.query = torch.randn(batch, num_kv_heads, group, key_dim).to(dtype)
        cache = torch.randn(batch + 1, num_kv_heads, longest + 9, key_dim).to(dtype)
        self.key = cache[:batch, :, : longest + 3]
        cache = torch.randn(batch + 1, num_kv_heads, longest + 9, value_dim).to(dtype)
        self.value = cache[:batch, :, : longest + 3]
        self.mask = torch.full((batch, 1, 1, longest + 3), -torch.inf, dtype=dtype)
        for row, length in enumerate(lengths):
            self.mask[row, :, :, max(0, length - (window or length)) : length] = 0

    def expected(self, scale: float, softcap: float, sinks: torch.Tensor | None) -> torch.Tensor:
        """Compute the documented formula in float64."""
        scores = self.query.double() @ self.key.double().transpose(-1, -2) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores + self.mask.double()
        weights = scores.exp()
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + sinks.double().exp()
        return (weights / total) @ self.value.double()

    def check(
        self, scale: float = 0.1, softcap: float = 0.0, sinks: torch.Tensor | None = None
    ) -> None:
        actual = decode_attention(
            self.query, self.key, self.value, self.mask, scale, softcap, sinks
        )
        assert actual.dtype == self.query.dtype
        difference = (actual.double() - self.expected(scale, softcap, sinks)).abs().max()
        assert difference < TOLERANCE[self.query.dtype]


@needs_compiler
def test_the_installed_compiler_compiles_the_source() -> None:
    assert c_extension.load("decode_attention.c") is not None


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [[1], [7], [130, 1, 64, 65, 3], [200] * 40])
def test_slots_of_any_length(dtype: torch.dtype, lengths: list[int]) -> None:
    Case(lengths, dtype).check()


@pytest.mark.parametrize(("key_dim", "value_dim"), [(64, 64), (128, 128), (16, 16), (20, 12)])
@pytest.mark.parametrize(("num_kv_heads", "group"), [(1, 1), (6, 1), (1, 5)])
def test_any_width_and_any_number_of_heads(
    key_dim: int, value_dim: int, num_kv_heads: int, group: int
) -> None:
    Case(
        [40, 3], num_kv_heads=num_kv_heads, group=group, key_dim=key_dim, value_dim=value_dim
    ).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_soft_caps_and_sinks(dtype: torch.dtype) -> None:
    sinks = torch.tensor([[[0.5], [-2.0], [4.0]], [[1.0], [0.0], [9.0]]])
    case = Case([50, 20, 7], dtype, window=12)
    case.check()
    case.check(scale=1.0, softcap=3.0)
    case.check(sinks=sinks)
    case.check(scale=0.5, softcap=2.0, sinks=sinks)


def test_scores_of_hundreds_do_not_overflow() -> None:
    case = Case([30, 9])
    case.query *= 40
    assert (case.query @ case.key.transpose(-1, -2)).abs().max() > 500
    weights = (case.query @ case.key.transpose(-1, -2) + case.mask).double().softmax(-1)
    actual = decode_attention(case.query, case.key, case.value, case.mask, 1.0, 0.0, None)
    torch.testing.assert_close(actual.double(), weights @ case.value.double(), atol=1e-3, rtol=0)


@needs_compiler
def test_positions_masked_at_the_ends_are_not_read() -> None:
    case = Case([5, 9])
    case.key[0, :, 5:] = math.nan
    case.value[0, :, 5:] = math.nan
    actual = decode_attention(case.query, case.key, case.value, case.mask, 0.1, 0.0, None)
    assert actual.isfinite().all()


def test_a_nan_stays_in_its_own_slot() -> None:
    case = Case([5, 9])
    case.value[1, 0, 2] = math.nan
    actual = decode_attention(case.query, case.key, case.value, case.mask, 0.1, 0.0, None)
    assert actual[1, 0].isnan().all()
    assert actual[0].isfinite().all()


def test_all_slots_can_share_one_mask() -> None:
    case = Case([20, 20, 20])
    case.mask = case.mask[:1]
    case.check()


def test_a_query_can_be_non_contiguous() -> None:
    case = Case([20, 5])
    case.query = case.query.transpose(1, 2).contiguous().transpose(1, 2)
    assert not case.query.is_contiguous()
    case.check()


def test_torch_computes_shapes_that_the_c_code_cannot_read() -> None:
    case = Case([20, 5])
    per_head = torch.zeros(2, 2, 1, case.key.shape[2])
    per_head[:, 1, :, 3:] = -torch.inf
    arguments = (case.query, case.key, case.value)
    actual = decode_attention(*arguments, per_head, 0.1, 0.0, None)
    expected = packed_attention(*arguments, per_head, 0.1, 0.0, None)
    torch.testing.assert_close(actual, expected)
    with pytest.raises(RuntimeError):
        decode_attention(case.query, case.key.bfloat16(), case.value, case.mask, 0.1, 0.0, None)
    with pytest.raises(RuntimeError):
        decode_attention(*arguments, case.mask[..., :9], 0.1, 0.0, None)


@pytest.fixture
def two_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("lengths", [[4000], [200] * 40, [3000, 1, 900, 50, 7]])
def test_the_number_of_threads_does_not_change_the_result(lengths: list[int]) -> None:
    case = Case(lengths)
    arguments = (case.query, case.key, case.value, case.mask, 0.1, 0.0, None)
    together = decode_attention(*arguments)
    torch.set_num_threads(1)
    assert torch.equal(decode_attention(*arguments), together)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_attention_is_a_valid_torch_operator(dtype: torch.dtype) -> None:
    case = Case([20, 5], dtype, value_dim=32)
    sinks = torch.zeros(2, 3, 1)
    for softcap, extra in ((0.0, None), (2.0, sinks)):
        arguments = (case.query, case.key, case.value, case.mask, 0.1, softcap, extra)
        torch.library.opcheck(decode_attention, arguments)


@needs_compiler
def test_a_slots_result_does_not_depend_on_other_slots() -> None:
    alone, together = Case([33]), Case([33] * 70)
    for name in ("query", "key", "value"):
        getattr(together, name)[41] = getattr(alone, name)[0]
    first = decode_attention(alone.query, alone.key, alone.value, alone.mask, 0.1, 0.0, None)
    second = decode_attention(
        together.query, together.key, together.value, together.mask, 0.1, 0.0, None
    )
    assert torch.equal(first[0], second[41])


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_torch_computes_the_attention() -> None:
    assert c_extension.load("decode_attention.c") is None
    case = Case([40, 3], torch.bfloat16)
    arguments = (case.query, case.key, case.value, case.mask, 0.1, 0.0, None)
    assert torch.equal(decode_attention(*arguments), packed_attention(*arguments))
    case.check(softcap=2.0)


def test_torch_replaces_a_library_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    c_extension.load.cache_clear()
    # `true` succeeds and writes no file.
    monkeypatch.setenv("CC", "true")
    assert c_extension.load("decode_attention.c") is None
    assert "cannot compile decode_attention.c, using torch instead:" in caplog.text
    c_extension.load.cache_clear()


@pytest.mark.slow
@needs_compiler
def test_compilation_prints_nothing_and_leaves_no_files(tmp_path: Path) -> None:
    script = (
        "import torch; from latentwire_service.engine.hf.cpu import c_extension; "
        "assert c_extension.load('decode_attention.c') is not None"
    )
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, check=True
    )
    assert done.stdout == done.stderr == b""
    assert not any(tmp_path.iterdir())
