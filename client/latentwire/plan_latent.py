"""The answer to one task as a Python value. Knows the wire models, not HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latentwire.errors import MissingDependencyError, ProtocolError
from latentwire.number_formats import NumberFormat
from latentwire.protocol import FinishReason, LatentInfo, PlanLatentResponse, Timings, Usage
from latentwire.tensors import decode_hidden_state, encode_hidden_state

if TYPE_CHECKING:
    import torch


# An array has no single truth value, so answers compare by identity.
@dataclass(frozen=True, eq=False)
class PlanLatent:
    """A plan and its latent; `latentwire.protocol` defines a latent.

    Attributes:
        id: id of the answer, `plan-...`; the service's log states it too.
        model: id of the model that made it.
        task: the task as sent; None for messages.
        task_id: the caller's own id, as sent.
        plan: the generated text.
        k: hidden rows that the request keeps; None: all.
        hidden_state: `[rows, hidden_size]` float32, read-only; a view of the bytes received, unless
            it was streamed.
        latent: which hidden states these are.
        token_ids: the generated tokens; row t of `hidden_state` predicted token t. Rows of latent
            steps come before it.
        finish_reason: "stop" or "length"; "latent" for latent steps without tokens, "given" for a
            plan that was scored.
        seed: the seed used; sending it again repeats the answer.
        usage: token counts.
        timings: where the time went, in milliseconds.
        date: the date, like 2025-01-31, that the model's chat template wrote into the prompt; None
            when it wrote none. Repeating the answer on another day takes this date, too.
        logprob: natural log of the probability of a plan that was scored, at temperature 1.
        token_logprobs: the same of each of its tokens.
    """

    id: str
    model: str
    task: str | None
    task_id: str | None
    plan: str
    k: int | None
    hidden_state: npt.NDArray[np.float32] = field(repr=False)
    latent: LatentInfo
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason
    seed: int
    usage: Usage
    timings: Timings
    date: str | None = None
    logprob: float | None = None
    token_logprobs: tuple[float, ...] | None = field(default=None, repr=False)

    @classmethod
    def from_response(cls, response: PlanLatentResponse) -> PlanLatent:
        """Decode a response.

        Raises:
            ProtocolError: when its hidden state cannot be decoded or its counts disagree.
        """
        return cls.from_parts(response, decode_hidden_state(response.hidden_state))

    @classmethod
    def from_parts(
        cls, response: PlanLatentResponse, hidden_state: npt.NDArray[np.float32]
    ) -> PlanLatent:
        """Join a response and its hidden state, which may have arrived apart from it.

        Raises:
            ProtocolError: when the counts disagree.
        """
        logprobs = response.token_logprobs
        plan = cls(
            **response.shared(),
            task=response.task,
            plan=response.plan,
            hidden_state=hidden_state,
            token_ids=tuple(response.token_ids),
            logprob=response.logprob,
            token_logprobs=logprobs if logprobs is None else tuple(logprobs),
        )
        plan.check_counts()
        return plan

    def as_part(self, bridge: str | None = None, dtype: NumberFormat = "float32") -> dict[str, Any]:
        """Return the latent as a part of a message, for a request to the same or another model.

        Args:
            bridge: name of the receiver's bridge; None: the one made for this sender.
            dtype: number format of the rows in the request.

        Returns:
            JSON values: ``{"type": "latent", "hidden_state": ..., "latent": ...}``.

        Raises:
            NumberFormatError: when a value does not fit the dtype; the text names its row.
        """
        part: dict[str, Any] = {
            "type": "latent",
            "hidden_state": encode_hidden_state(self.hidden_state, dtype).model_dump(mode="json"),
            "latent": self.latent.model_dump(mode="json"),
        }
        return part if bridge is None else part | {"bridge": bridge}

    def check_counts(self) -> None:
        """Check the latent's invariant: rows == min(k, n + L), and all counts agree.

        Raises:
            ProtocolError: when it does not hold.
        """
        usage, num_rows = self.usage, len(self.hidden_state)
        num_tokens = usage.completion_tokens
        num_made = usage.latent_steps + num_tokens
        num_expected = num_made if self.k is None else min(self.k, num_made)
        if not num_rows == usage.latent_rows == num_expected:
            raise ProtocolError(
                f"answer {self.id} has {num_rows} hidden rows and latent_rows "
                f"{usage.latent_rows}, but k {self.k}, {usage.latent_steps} latent steps and "
                f"{num_tokens} completion tokens require {num_expected}"
            )
        for name in ("token_ids", "token_logprobs"):
            values = getattr(self, name)
            if values is not None and len(values) != num_tokens:
                raise ProtocolError(
                    f"answer {self.id} has {len(values)} {name} for {num_tokens} completion tokens"
                )

    def to_torch(self) -> torch.Tensor:
        """Copy the hidden state into a new tensor.

        Returns:
            `[rows, hidden_size]` float32, CPU; writing to it does not change the plan.

        Raises:
            MissingDependencyError: when torch is not installed.
        """
        try:
            import torch
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise MissingDependencyError("to_torch() needs torch: pip install torch") from error
        return torch.from_numpy(np.array(self.hidden_state, dtype=np.float32))
