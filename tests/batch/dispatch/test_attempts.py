from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from latentwire import PlanLatent, ProtocolError
from latentwire_batch.dispatch.attempts import check_answer

WIDTH = 100


def answer(*values: float) -> PlanLatent:
    """An answer whose latent begins and ends with some values."""
    rows = np.ones((3, WIDTH), dtype=np.float32)
    rows[0, : len(values)] = values
    rows[-1, -len(values) :] = values
    fake: Any = SimpleNamespace(hidden_state=rows)
    return cast(PlanLatent, fake)


@pytest.mark.parametrize(
    "values", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf], [3e38, 3e38, np.nan]]
)
def test_values_that_are_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(ProtocolError, match="not finite"):
        check_answer(answer(*values), WIDTH)


@pytest.mark.parametrize("values", [[0.0], [3e38, 3e38], [-3e38, -3e38]])
def test_finite_values_pass_even_if_their_sum_is_not(values: list[float]) -> None:
    check_answer(answer(*values), WIDTH)


def test_another_width_is_refused() -> None:
    with pytest.raises(ProtocolError, match="hidden size"):
        check_answer(answer(1.0), WIDTH + 1)
