"""The device and the dtype that the engine's tests run on, and what is close enough there.

`LATENTWIRE_TEST_DEVICE` (cpu, cuda) and `LATENTWIRE_TEST_DTYPE` (fp32, bf16, fp16) set them. Both
are read when this module is imported. `make test-gpu` runs the engine's tests in fp32 and in bf16.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch

DEVICE = torch.device(os.environ.get("LATENTWIRE_TEST_DEVICE", "cpu"))
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
    os.environ.get("LATENTWIRE_TEST_DTYPE", "fp32")
]


@dataclass(frozen=True)
class Tolerance:
    """What may differ between two orders of summation.

    Attributes:
        value: absolute difference of a number in a row.
        median: median over rows of the relative error of a row.
        gap: how far a chosen token's score may lie below the best one, relative to the range of
            scores that the row has. 0: the chosen tokens must be equal.
    """

    value: float
    median: float
    gap: float


# The random models have large weights, so that greedy tokens vary. 16-bit rounding moves a single
# row far but not the median, except that a mixture of experts may choose another expert. CPUs and
# GPUs share one table, because each is only another order of summation.
TOLERANCES = {
    torch.float32: Tolerance(value=1e-4, median=1e-5, gap=0.0),
    torch.bfloat16: Tolerance(value=1.5, median=0.2, gap=0.2),
    torch.float16: Tolerance(value=0.1, median=0.02, gap=0.05),
}
TOLERANCE = TOLERANCES[DTYPE]
IS_EXACT = TOLERANCE.gap == 0.0

# For tests of a rule that holds for any dtype, and that need the tokens of two runs to be equal.
needs_exact_tokens = pytest.mark.skipif(
    not IS_EXACT, reason="rounding to 16 bits can change a token"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def is_missing() -> bool:
    """Whether the tests shall run on a device that this machine does not have."""
    return DEVICE.type == "cuda" and not torch.cuda.is_available()
