"""A real runner that a test holds, breaks or spoils."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from latentwire_service.engine.runner import ModelRunner, StepOutput


class GatedRunner:
    """Calls `before` before each decode pass, and may replace the pass's hidden rows by NaN."""

    def __init__(
        self,
        runner: ModelRunner,
        before: Callable[[], None] = lambda: None,
        has_nan_rows: bool = False,
    ) -> None:
        self._runner = runner
        self._before = before
        self._has_nan_rows = has_nan_rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def decode(self, *args: Any, **kwargs: Any) -> StepOutput:
        self._before()
        output = self._runner.decode(*args, **kwargs)
        if not self._has_nan_rows:
            return output
        return dataclasses.replace(output, hidden=torch.full_like(output.hidden, torch.nan))
