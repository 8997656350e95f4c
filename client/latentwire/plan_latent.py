"""The answer to one task as a Python value. Knows the wire models, not HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latentwire.answer_form import ARRAY_PREFIX, COMPRESSED, HIDDEN_STATE, named_latents
from latentwire.errors import InvalidArgumentError, MissingDependencyError, ProtocolError
from latentwire.number_formats import NumberFormat
from latentwire.protocol import (
    AppliedCompressor,
    FinishReason,
    HiddenState,
    LatentInfo,
    PlanLatentResponse,
    Timings,
    Usage,
)
from latentwire.tensors import TensorError, decode_hidden_state, encode_hidden_state

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.float32]

NO_ROWS: Rows = np.empty((0, 0), np.float32)
"""The `hidden_state` of an answer that leaves it out; no model's rows have the width 0."""
NO_ROWS.flags.writeable = False


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
        k: hidden rows that the request keeps; None: all. With a compressor, its k.
        hidden_state: `[rows, hidden_size]` float32, read-only, whatever number format the request
            has; of float32 it is a view of the bytes received, unless it was streamed. `[0, 0]`
            with ``return_hidden_state=False``.
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
        hidden_state_comp: the compressed latent, `[K, D]` float32, read-only; None without a
            compressor.
        hidden_state_comp_arrays: further arrays that the compressor's `decompress` needs, 2-D
            float32, by name.
        compressor: which compressor made it.
    """

    id: str
    model: str
    task: str | None
    task_id: str | None
    plan: str
    k: int | None
    hidden_state: Rows = field(repr=False)
    latent: LatentInfo
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason
    seed: int
    usage: Usage
    timings: Timings
    date: str | None = None
    logprob: float | None = None
    token_logprobs: tuple[float, ...] | None = field(default=None, repr=False)
    hidden_state_comp: Rows | None = field(default=None, repr=False)
    hidden_state_comp_arrays: Mapping[str, Rows] = field(default_factory=dict, repr=False)
    compressor: AppliedCompressor | None = None

    @property
    def has_hidden_state(self) -> bool:
        """Whether the answer holds the full latent, perhaps without rows."""
        return bool(self.hidden_state.shape[1] > 0)

    @classmethod
    def from_response(cls, response: PlanLatentResponse) -> PlanLatent:
        """Decode a response.

        Raises:
            ProtocolError: when a latent of it cannot be decoded or its counts disagree.
        """
        latents = named_latents(
            response.hidden_state, response.hidden_state_comp, response.hidden_state_comp_arrays
        )
        return cls.from_parts(response, decoded(latents))

    @classmethod
    def from_parts(cls, response: PlanLatentResponse, latents: Mapping[str, Rows]) -> PlanLatent:
        """Join a response and its latents, which may have arrived apart from it.

        Args:
            response: the other fields.
            latents: `[rows, width]` float32, by the names of `named_latents`.

        Raises:
            ProtocolError: when the counts disagree.
        """
        logprobs = response.token_logprobs
        plan = cls(
            **response.shared(),
            **compressed_fields(response.compressor, latents),
            task=response.task,
            plan=response.plan,
            hidden_state=latents.get(HIDDEN_STATE, NO_ROWS),
            token_ids=tuple(response.token_ids),
            logprob=response.logprob,
            token_logprobs=logprobs if logprobs is None else tuple(logprobs),
        )
        plan.check_counts()
        return plan

    def as_part(
        self,
        bridge: str | None = None,
        dtype: NumberFormat = "float32",
        *,
        compressed: bool = False,
    ) -> dict[str, Any]:
        """Return the latent as a part of a message, for a request to the same or another model.

        Args:
            bridge: name of the receiver's bridge; None: the one made for this sender.
            dtype: number format of the rows in the request.
            compressed: send `hidden_state_comp`, whose rows a receiver can read if the
                compressor's output is `rows` or `embeddings`.

        Returns:
            JSON values: ``{"type": "latent", "hidden_state": ..., "latent": ...}``.

        Raises:
            InvalidArgumentError: when there is no compressed latent, or only its compressor can
                read it.
            NumberFormatError: when a value does not fit the dtype; the text names its row.
        """
        rows = self._readable_rows() if compressed else self.hidden_state
        part: dict[str, Any] = {
            "type": "latent",
            "hidden_state": encode_hidden_state(rows, dtype).model_dump(mode="json"),
            "latent": self.latent.model_dump(mode="json"),
        }
        return part if bridge is None else part | {"bridge": bridge}

    def _readable_rows(self) -> Rows:
        if self.hidden_state_comp is None or self.compressor is None:
            raise InvalidArgumentError("compressed", "compressed: the answer has no compressor")
        if self.compressor.output == "coefficients":
            raise InvalidArgumentError(
                "compressed", f"compressed: decompress the rows of {self.compressor.name} first"
            )
        return self.hidden_state_comp

    def check_counts(self) -> None:
        """Check the latent's invariant: rows == min(k, n + L), and all counts agree.

        Raises:
            ProtocolError: when it does not hold.
        """
        usage, num_rows = self.usage, len(self.hidden_state)
        num_tokens = usage.completion_tokens
        num_made = usage.latent_steps + num_tokens
        num_expected = self._num_expected(num_made)
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
        self._check_compressed(num_made if self.k is None else min(self.k, num_made))

    def _num_expected(self, num_made: int) -> int:
        """Return the rows that `hidden_state` must have when so many were made."""
        if not self.has_hidden_state:
            return 0
        # With a compressor, k is its number of rows.
        is_cut = self.k is not None and self.compressor is None
        return min(self.k or 0, num_made) if is_cut else num_made

    def _check_compressed(self, max_rows: int) -> None:
        rows = self.hidden_state_comp
        if (rows is None) != (self.compressor is None):
            raise ProtocolError(f"answer {self.id} has a compressed latent or a compressor alone")
        if rows is not None and len(rows) > max_rows:
            raise ProtocolError(
                f"answer {self.id} has {len(rows)} compressed rows, but at most {max_rows} may be"
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


def decoded(latents: Mapping[str, HiddenState]) -> dict[str, Rows]:
    """Decode latents of an answer into read-only `[rows, width]` float32.

    Raises:
        ProtocolError: when one cannot be decoded.
    """
    arrays: dict[str, Rows] = {}
    for name, sent in latents.items():
        try:
            arrays[name] = decode_hidden_state(sent)
        except TensorError as error:
            raise ProtocolError(f"{name}.{error.field} {error.reason}") from error
        arrays[name].flags.writeable = False
    return arrays


def compressed_fields(
    compressor: AppliedCompressor | None, latents: Mapping[str, Rows]
) -> dict[str, Any]:
    """Return the fields of a `PlanLatent` that are about its compressed latent.

    Args:
        compressor: which made it; None: there is none.
        latents: by the names of `named_latents`.
    """
    return {
        "hidden_state_comp": latents.get(COMPRESSED),
        "hidden_state_comp_arrays": {
            name.removeprefix(ARRAY_PREFIX): rows
            for name, rows in latents.items()
            if name.startswith(ARRAY_PREFIX)
        },
        "compressor": compressor,
    }
