from __future__ import annotations

import numpy as np
import pytest
import torch

from latentwire_service.engine.row_copy import RowCopier
from support.engine.device import DEVICE
from support.engine.harness import EngineHarness
from support.tiny_models import build_model, llama_config, random_prompts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_arrive_as_float32(dtype: torch.dtype) -> None:
    hidden = torch.randn(5, 8).to(DEVICE, dtype)
    rows = RowCopier(hidden.device, 8, 8).start(hidden).wait()
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, hidden.float().cpu().numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_arrive_from_a_gpu() -> None:
    copier = RowCopier(torch.device("cuda"), 8, 8)
    for _ in range(3):
        hidden = torch.randn(5, 8, device="cuda")
        np.testing.assert_array_equal(copier.start(hidden).wait(), hidden.cpu().numpy())


def test_a_step_copies_once_and_only_rows_that_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied: list[int] = []
    start = RowCopier.start

    def counted(self: RowCopier, hidden: torch.Tensor) -> object:
        copied.append(len(hidden))
        return start(self, hidden)

    monkeypatch.setattr(RowCopier, "start", counted)
    harness = EngineHarness(build_model(llama_config()), max_slots=3, eos=())
    for prompt, k in zip(random_prompts([6, 6, 6]), [0, 2, 4], strict=True):
        harness.submit(prompt, 6, k=k)
    harness.run()
    # Steps 1 and 2: two requests want their row; 3 and 4: one; 5 and 6: none.
    assert copied == [2, 2, 1, 1]
