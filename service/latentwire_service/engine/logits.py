"""Changes to a request's logits before its token is chosen: penalties, biases, forbidden tokens.

`engine.hf` states them as Hugging Face `generate` applies them. Changes that follow from the tokens
of prompt and plan alone are computed for all rows at once; other changes run row by row. A change
that fails ends its own request only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from latentwire_service.engine.backend import GenerationSpec
from latentwire_service.engine.errors import EngineError, ProcessorError
from latentwire_service.engine.request import Request
from latentwire_service.engine.sampling_params import SamplingParams

# The table of tokens grows in steps of these sizes.
_ROW_STEP = 8
_COLUMN_STEP = 256

# Changes the logits `[1, vocab_size]` float32, which it may overwrite, of the token after the given
# tokens of the plan.
RowProcessor = Callable[[Sequence[int], torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class TokenPenalties:
    """Changes that follow from the tokens of prompt and plan, applied in this order.

    Attributes:
        bias: pairs of a token id and the number added to its logit.
        repetition: positive logits of tokens in prompt and plan are divided by it, negative ones
            multiplied; 1 changes nothing.
        presence: subtracted once from the logit of each token in the plan.
        frequency: subtracted for each time that the plan holds the token.
    """

    bias: Sequence[tuple[int, float]] = ()
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0


@dataclass(frozen=True, slots=True)
class RowLogits:
    """The changes of one request.

    Attributes:
        sampling: how to draw from the changed logits.
        penalties: applied first; None when there are none.
        process: applied next; None when there is nothing else to change.
    """

    sampling: SamplingParams
    penalties: TokenPenalties | None = None
    process: RowProcessor | None = None


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
        self._penalties = _PenaltyTable()

    def apply(self, requests: Sequence[Request], logits: torch.Tensor) -> ChangedLogits:
        """Change the logits `[B, vocab_size]` of B requests' next tokens."""
        sampling = [request.spec.sampling for request in requests]
        changes: dict[int, RowLogits] = {}
        errors: dict[int, EngineError] = {}
        for row, request in enumerate(requests):
            if request.token_ids and request not in self._active:
                continue
            try:
                change = self._change_of(request, logits)
            except Exception as error:
                errors[row] = _processor_error(error)
                continue
            if change is not None:
                sampling[row] = change.sampling
                changes[row] = change
        changed = {row for row, each in changes.items() if each.penalties or each.process}
        if changed:
            # One copy for all rows, which the changes may overwrite.
            logits = logits.to(
                dtype=torch.float32, copy=True, memory_format=torch.contiguous_format
            )
            penalised = {row: requests[row] for row, each in changes.items() if each.penalties}
            if penalised:
                self._penalties.apply(penalised, logits)
            for row, each in changes.items():
                if each.process is not None:
                    own = logits[row : row + 1]
                    try:
                        result = each.process(requests[row].token_ids, own)
                        if result is not own:
                            own.copy_(result)
                    except Exception as error:
                        # Runs for one request, on values that the request chose.
                        errors[row] = _processor_error(error)
        return ChangedLogits(logits, sampling, frozenset(changed), errors)

    def forget(self, request: Request) -> None:
        """Free what a request's changes hold."""
        if self._active.pop(request, None) is not None:
            self._penalties.forget(request)

    def _change_of(self, request: Request, logits: torch.Tensor) -> RowLogits | None:
        if not request.token_ids:
            change = self._make(request.spec)
            if change is not None:
                if change.penalties is not None:
                    self._penalties.add(request, change.penalties, logits)
                self._active[request] = change
        return self._active.get(request)


def _processor_error(cause: Exception) -> ProcessorError:
    error = ProcessorError("the logits cannot be processed")
    error.__cause__ = cause
    return error


@dataclass(slots=True)
class _Entry:
    """One request in the table.

    Attributes:
        row: of the table.
        num_prompt: length of the prompt in tokens.
        num_tokens: tokens in the table, prompt included.
        bias_ids: `[n]` int64, bias: `[n]` float32, on the logits' device; None without a bias.
    """

    penalties: TokenPenalties
    row: int
    num_prompt: int
    num_tokens: int
    bias_ids: torch.Tensor | None
    bias: torch.Tensor | None


class _Batch(NamedTuple):
    """Some rows of one step, on the logits' device.

    Attributes:
        offsets: `[B, 1]` int64, where each row of the flat logits begins.
        rows: `[B]` int64, of the table. num_prompt, num_tokens: `[B, 1]` int64, as in `_Entry`.
        repetition, presence, frequency: `[B, 1]` float32.
    """

    offsets: torch.Tensor
    rows: torch.Tensor
    num_prompt: torch.Tensor
    num_tokens: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor

    @classmethod
    def of(cls, entries: Mapping[int, _Entry], vocab_size: int, device: torch.device) -> _Batch:
        """Collect entries by their row of the logits."""
        whole = [
            (index * vocab_size, entry.row, entry.num_prompt, entry.num_tokens)
            for index, entry in entries.items()
        ]
        real = [
            (entry.penalties.repetition, entry.penalties.presence, entry.penalties.frequency)
            for entry in entries.values()
        ]
        # Two copies to the device, whatever the number of rows.
        offsets, rows, num_prompt, num_tokens = torch.tensor(whole, device=device).unbind(1)
        weights = torch.tensor(real, dtype=torch.float32, device=device).unbind(1)
        return cls(
            offsets[:, None],
            rows,
            num_prompt[:, None],
            num_tokens[:, None],
            *(weight[:, None] for weight in weights),
        )


class _PenaltyTable:
    """The tokens of all requests with penalties, on the device, one row each.

    A row begins with the prompt. Places behind its last token hold its first token, so that they
    change nothing: a logit that is written twice gets the same value twice.
    """

    def __init__(self) -> None:
        self._token_ids = torch.empty(0, 0, dtype=torch.long)
        self._free_rows: list[int] = []
        self._entries: dict[Request, _Entry] = {}

    def add(self, request: Request, penalties: TokenPenalties, logits: torch.Tensor) -> None:
        """Take in a request before its first token.

        Args:
            request: without a token yet.
            penalties: of the request.
            logits: `[B, vocab_size]` on the device of all later ones.

        Raises:
            IndexError: a token id is not one of the logits'.
        """
        # Positions that hold embeddings have no token to be counted.
        prompt_ids = request.spec.prompt.text_only().token_ids
        bias_ids = [token_id for token_id, _ in penalties.bias]
        # One row's mistake must not reach the logits of the next row.
        if not all(0 <= token_id < logits.shape[1] for token_id in (*prompt_ids, *bias_ids)):
            raise IndexError("a token id is not below the vocabulary size")
        device = logits.device
        self._reserve(len(prompt_ids) + request.spec.sampling.max_new_tokens, device)
        entry = _Entry(
            penalties, self._free_rows.pop(), len(prompt_ids), len(prompt_ids), None, None
        )
        if bias_ids:
            values = [value for _, value in penalties.bias]
            entry.bias_ids = torch.tensor(bias_ids, device=device)
            entry.bias = torch.tensor(values, dtype=torch.float32, device=device)
        if prompt_ids:
            self._token_ids[entry.row] = prompt_ids[0]
            self._token_ids[entry.row, : len(prompt_ids)] = torch.tensor(prompt_ids, device=device)
        self._entries[request] = entry

    def forget(self, request: Request) -> None:
        """Free the row of a request, if it has one."""
        entry = self._entries.pop(request, None)
        if entry is not None:
            self._free_rows.append(entry.row)

    def apply(self, requests: Mapping[int, Request], logits: torch.Tensor) -> None:
        """Change the logits `[B, vocab_size]` float32 in place.

        Args:
            requests: by their row of the logits.
            logits: C-contiguous, of the next tokens.
        """
        self._append(requests.values())
        entries = {index: self._entries[request] for index, request in requests.items()}
        vocab_size, flat = logits.shape[1], logits.view(-1)
        self._add_bias(entries, vocab_size, flat)
        repeated = {
            i: e for i, e in entries.items() if e.penalties.repetition != 1 and e.num_tokens
        }
        if repeated:
            self._divide(_Batch.of(repeated, vocab_size, logits.device), repeated, flat)
        counted = {
            i: e
            for i, e in entries.items()
            if (e.penalties.presence or e.penalties.frequency) and e.num_tokens > e.num_prompt
        }
        if counted:
            self._subtract(_Batch.of(counted, vocab_size, logits.device), counted, flat)

    def _reserve(self, width: int, device: torch.device) -> None:
        """Make room for one more row of a width."""
        old = self._token_ids.to(device)
        num_rows, num_columns = old.shape
        if self._free_rows and width <= num_columns:
            return
        if not self._free_rows:
            # The number of rows doubles, so that the cost of a copy is shared.
            added = max(_ROW_STEP, num_rows)
            self._free_rows = list(range(num_rows + added - 1, num_rows - 1, -1))
            num_rows += added
        num_columns = max(num_columns, -(-width // _COLUMN_STEP) * _COLUMN_STEP)
        self._token_ids = torch.zeros(num_rows, num_columns, dtype=torch.long, device=device)
        if old.numel():
            self._token_ids[: len(old)] = old[:, :1]
            self._token_ids[: len(old), : old.shape[1]] = old

    def _append(self, requests: Iterable[Request]) -> None:
        """Write the tokens that were generated since the last call."""
        places: list[tuple[int, int, int]] = []
        for request in requests:
            entry = self._entries[request]
            for token_id in request.token_ids[entry.num_tokens - entry.num_prompt :]:
                if entry.num_tokens == 0:
                    self._token_ids[entry.row] = token_id
                places.append((entry.row, entry.num_tokens, token_id))
                entry.num_tokens += 1
        if places:
            rows, columns, token_ids = torch.tensor(places, device=self._token_ids.device).unbind(1)
            self._token_ids[rows, columns] = token_ids

    @staticmethod
    def _add_bias(entries: Mapping[int, _Entry], vocab_size: int, flat: torch.Tensor) -> None:
        places, values = [], []
        for index, entry in entries.items():
            if entry.bias_ids is not None and entry.bias is not None:
                places.append(entry.bias_ids + index * vocab_size)
                values.append(entry.bias)
        if places:
            flat.index_add_(0, torch.cat(places), torch.cat(values))

    def _divide(self, batch: _Batch, entries: Mapping[int, _Entry], flat: torch.Tensor) -> None:
        """Apply the repetition penalty to rows with at least one token."""
        width = max(entry.num_tokens for entry in entries.values())
        places = (self._token_ids[batch.rows, :width] + batch.offsets).flatten()
        weights = batch.repetition.expand(-1, width).flatten()
        scores = flat[places]
        flat[places] = torch.where(scores < 0, scores * weights, scores / weights)

    def _subtract(self, batch: _Batch, entries: Mapping[int, _Entry], flat: torch.Tensor) -> None:
        """Apply the presence and the frequency penalty to rows with at least one new token."""
        width = max(entry.num_tokens - entry.num_prompt for entry in entries.values())
        columns = batch.num_prompt + torch.arange(width, device=flat.device)
        # Places behind the last token repeat the first token of the plan: they write what it does.
        is_token = columns < batch.num_tokens
        columns = torch.where(is_token, columns, batch.num_prompt)
        token_ids = self._token_ids[batch.rows[:, None], columns]
        ordered = token_ids.masked_fill(~is_token, -1).sort(dim=1).values
        # In a sorted row, the occurrences of a token are next to each other.
        counts = torch.searchsorted(ordered, token_ids, right=True) - torch.searchsorted(
            ordered, token_ids
        )
        places = token_ids + batch.offsets
        flat[places] = flat[places] - (batch.presence + batch.frequency * counts)
