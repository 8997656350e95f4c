"""What vLLM reports to this service's engine: plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentwire_service.vllm_engine.row_wire import RowBatch


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Tokens of one request, in their order.

    Attributes:
        request: its number.
        token_ids: since the last report.
        ended_by: vLLM's own reason, with the last tokens; None before that.
    """

    request: int
    token_ids: Sequence[int]
    ended_by: str | None = None


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """vLLM gives up one request."""

    request: int
    reason: str


# None: the engine process has ended.
Event = NewTokens | RequestFailed | RowBatch | None
