"""Changes to a request's logits before its token is chosen: penalties, biases, forbidden tokens.

`engine.hf` makes them as Hugging Face `generate` does. Requests without any are not touched, and a
change that fails ends its own request only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from latentwire_service.engine.backend import GenerationSpec
from latentwire_service.engine.errors import EngineError, ProcessorError
from latentwire_service.engine.request import Request
from latentwire_service.engine.sampling_params import SamplingParams


class RowLogits(Protocol):
    """The changes of one request."""

    @property
    def sampling(self) -> SamplingParams:
        """How to draw from the changed logits."""
        ...

    def __call__(self, token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Change the logits of the next token.

        Args:
            token_ids: the tokens generated so far.
            logits: `[1, vocab_size]` float32; may be overwritten.

        Returns:
            `[1, vocab_size]` float32.
        """
        ...


# Makes the changes of a request; None when it has none.
RowLogitsFactory = Callable[[GenerationSpec], RowLogits | None]


@dataclass(frozen=True, slots=True)
class ChangedLogits:
    """Logits of B rows after the changes.

    Attributes:
        logits: `[B, vocab_size]`.
        sampling: how to draw from each row.
        rows: indices of the rows that were changed.
        errors: the failure of each row whose changes failed.
    """

    logits: torch.Tensor
    sampling: Sequence[SamplingParams]
    rows: frozenset[int]
    errors: Mapping[int, EngineError]


class LogitsChanges:
    """The changes of all requests that have some, from their first token to their end.

    Args:
        make: makes the changes of one request.
    """

    def __init__(self, make: RowLogitsFactory) -> None:
        self._make = make
        self._active: dict[Request, RowLogits] = {}

    def apply(self, requests: Sequence[Request], logits: torch.Tensor) -> ChangedLogits:
        """Change the logits `[B, vocab_size]` of B requests' next tokens."""
        sampling = [request.spec.sampling for request in requests]
        changed: set[int] = set()
        errors: dict[int, EngineError] = {}
        for row, request in enumerate(requests):
            if request.token_ids and request not in self._active:
                continue
            try:
                change = self._change_of(request)
                if change is None:
                    continue
                if not changed:
                    # One copy for all rows, which the processors may overwrite.
                    logits = logits.to(dtype=torch.float32, copy=True)
                changed.add(row)
                own = logits[row : row + 1]
                result = change(request.token_ids, own)
                if result is not own:
                    own.copy_(result)
                sampling[row] = change.sampling
            except Exception as error:
                # Runs for one request, on values that the request chose: only that request fails.
                errors[row] = ProcessorError("the logits cannot be processed")
                errors[row].__cause__ = error
        return ChangedLogits(logits, sampling, frozenset(changed), errors)

    def forget(self, request: Request) -> None:
        """Free what a request's changes hold."""
        self._active.pop(request, None)

    def _change_of(self, request: Request) -> RowLogits | None:
        if not request.token_ids:
            change = self._make(request.spec)
            if change is not None:
                self._active[request] = change
        return self._active.get(request)
