"""Reads the output of a forward pass: tokens are sampled, hidden rows are copied to the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from latentwire_service.engine.errors import EngineError, LatentInvalidError, NoTokenError
from latentwire_service.engine.logits import LogitsChanges
from latentwire_service.engine.passes.latent_steps import LatentSteps
from latentwire_service.engine.request import Request
from latentwire_service.engine.row_copy import PendingRows, RowCopier
from latentwire_service.engine.runner import StepOutput
from latentwire_service.engine.sampler import SamplingBatch, sample


@dataclass(frozen=True, slots=True)
class Computed:
    """What a pass gives its B requests, on the host.

    Attributes:
        token_ids: `[B]`, the next token of each request; without meaning for latent steps.
        is_finite: `[B]`, whether every value of its hidden row is finite.
        is_valid: `[B]`, whether the token's logit is a number above -inf; for a latent step,
            whether its next input is finite.
        stepping: indices of the requests in a latent step.
        errors: the failure of each request whose logits could not be changed, or whose bridge
            failed.
        changed: indices of the requests whose logits were changed.
        keeping: indices of the requests that keep this step's row.
        rows: `[len(keeping), hidden_size]` float32; the next step may overwrite it.
    """

    token_ids: Sequence[int]
    is_finite: Sequence[int]
    is_valid: Sequence[int]
    stepping: frozenset[int]
    errors: Mapping[int, EngineError]
    changed: frozenset[int]
    keeping: Sequence[int]
    rows: Sequence[npt.NDArray[np.float32]] | npt.NDArray[np.float32]

    def error_of(self, index: int) -> EngineError | None:
        """Return why a request has no valid step; None when it has one."""
        if not self.is_finite[index]:
            return LatentInvalidError("the model's hidden state is not finite")
        if index in self.errors:
            return self.errors[index]
        if self.is_valid[index]:
            return None
        if index in self.stepping:
            return LatentInvalidError("the bridge of the latent steps gave values not finite")
        if index in self.changed:
            return NoTokenError(
                "no token can be chosen: the request and the model's generation defaults exclude "
                "them all"
            )
        return LatentInvalidError("the model's logits are not numbers")


@dataclass(frozen=True, slots=True)
class _Choice:
    """The tokens of some requests: `[B]` int64 and bool on the device, and as in `Computed`."""

    token_ids: torch.Tensor
    is_valid: torch.Tensor
    errors: Mapping[int, EngineError]
    changed: frozenset[int]


class OutputReader:
    """Reads outputs for requests, all of a pass together.

    Args:
        changes: the changes to the requests' logits.
        latents: the inputs of their latent steps.
        copier: copies hidden rows to the host.
    """

    def __init__(self, changes: LogitsChanges, latents: LatentSteps, copier: RowCopier) -> None:
        self._changes = changes
        self._latents = latents
        self._copier = copier

    @torch.inference_mode()
    def read(
        self, requests: Sequence[Request], rows: Sequence[int], output: StepOutput
    ) -> Computed:
        """Sample the next token of each request from its row, and copy the hidden rows it keeps.

        Args:
            requests: B requests; those in a latent step get their next input in place of a token.
            rows: the row of the output of each.
            output: of a pass.
        """
        logits, hidden = output.logits, output.hidden
        if len(rows) != len(logits):
            index = torch.tensor(rows, device=logits.device)
            logits, hidden = logits[index], hidden[index]
        # Begun before sampling and awaited after it: on a GPU the two run side by side.
        keeping = [row for row, request in enumerate(requests) if not request.rows.is_full]
        pending = self._start_copy(keeping, hidden)
        stepping = frozenset(row for row, request in enumerate(requests) if request.is_latent)
        if stepping:
            choice = self._choose_some(requests, stepping, logits, hidden)
        else:
            choice = self._choose(requests, logits)
        token_ids, is_finite, is_valid = torch.stack(
            [choice.token_ids, torch.isfinite(hidden).all(dim=-1).long(), choice.is_valid.long()]
        ).tolist()
        return Computed(
            token_ids,
            is_finite,
            is_valid,
            stepping,
            choice.errors,
            choice.changed,
            keeping,
            () if pending is None else pending.wait(),
        )

    def _choose(self, requests: Sequence[Request], logits: torch.Tensor) -> _Choice:
        """Choose a token for each request from `[B, vocab_size]` logits."""
        changed = self._changes.apply(requests, logits)
        batch = SamplingBatch.build(
            changed.sampling, [len(request.token_ids) for request in requests], logits.device
        )
        sampled = sample(changed.logits, batch)
        chosen = changed.logits.gather(1, sampled[:, None])[:, 0]
        # False for NaN, too.
        return _Choice(sampled, chosen > float("-inf"), changed.errors, changed.rows)

    def _choose_some(
        self,
        requests: Sequence[Request],
        stepping: frozenset[int],
        logits: torch.Tensor,
        hidden: torch.Tensor,
    ) -> _Choice:
        """Choose tokens for the requests that are not in a latent step, and inputs for these."""
        made = self._latents.make(requests, sorted(stepping), hidden)
        choosing = [row for row in range(len(requests)) if row not in stepping]
        token_ids = torch.zeros(len(requests), dtype=torch.long, device=logits.device)
        if not choosing:
            return _Choice(token_ids, made.is_finite, made.errors, frozenset())
        index = torch.tensor(choosing, device=logits.device)
        choice = self._choose([requests[row] for row in choosing], logits[index])
        errors = {choosing[row]: error for row, error in choice.errors.items()}
        return _Choice(
            token_ids.index_copy(0, index, choice.token_ids),
            made.is_finite.index_copy(0, index, choice.is_valid),
            {**made.errors, **errors},
            frozenset(choosing[row] for row in choice.changed),
        )

    def _start_copy(self, keeping: Sequence[int], hidden: torch.Tensor) -> PendingRows | None:
        """Move hidden rows off the device: one copy for all, none for requests that have theirs."""
        if not keeping:
            return None
        if len(keeping) != len(hidden):
            hidden = hidden[torch.tensor(keeping, device=hidden.device)]
        return self._copier.start(hidden)
