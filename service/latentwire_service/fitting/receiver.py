"""The frozen receiver: how likely it finds a plan after it has read a message.

The message stands in a user turn between two texts, and the plan is the assistant's answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from latentwire_service.engine.hf.loader import LoadedModel
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.samples import Sample

_PLACE = "latentwire place 5b1e6d"


@dataclass(frozen=True, slots=True)
class Scored:
    """A message and the plan to score after it.

    Attributes:
        message: `[n, H_in]` on the receiver's device; `[0, H_in]` for none.
        plan_ids: the plan's tokens, at least one.
    """

    message: torch.Tensor
    plan_ids: Sequence[int]


class FrozenReceiver:
    """A model that reads messages and is not trained.

    Args:
        loaded: the model and its tokenizer.
        before: text of the user turn before the message.
        after: text of the user turn after the message.
        max_plan_tokens: longer plans are cut.

    Raises:
        BridgeError: the chat template does not show the message.
    """

    def __init__(self, loaded: LoadedModel, before: str, after: str, max_plan_tokens: int) -> None:
        self._model: Any = loaded.model.requires_grad_(False)
        self._tokenizer: Any = loaded.tokenizer
        self._max_plan_tokens = max_plan_tokens
        self._can_keep = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._embed: Any = self._model.get_input_embeddings()
        pieces = self._render(f"{before}{_PLACE}{after}").split(_PLACE)
        if len(pieces) != 2:
            raise BridgeError("the model's chat template does not show the message once")
        self._before, self._after = (self.embed(self.token_ids(piece)) for piece in pieces)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = self._model.device
        return device

    @property
    def width(self) -> int:
        """Width of its input embeddings."""
        return int(self._before.shape[1])

    def token_ids(self, text: str) -> list[int]:
        """Tokenize a piece of text, without added special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def plan_ids(self, sample: Sample) -> list[int]:
        """Return the tokens of a plan that are scored."""
        return self.token_ids(sample.plan)[: self._max_plan_tokens]

    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return input embeddings `[n, H_in]` float32."""
        ids = torch.tensor(list(token_ids), dtype=torch.long, device=self.device)
        with torch.no_grad():
            embedded: torch.Tensor = self._embed(ids).float()
        return embedded

    def aligned_embeddings(self, sample: Sample, is_own_model: bool) -> torch.Tensor:
        """Return the embedding that each row of a latent stands for: that of the token it predicts.

        Args:
            sample: its latent has L rows.
            is_own_model: whether the sender is the receiver's model, so that its tokens are known.

        Returns:
            `[n, H_in]` float32, n at most L. Without the sender's tokens, the rows are spread
            evenly over the receiver's tokens of the plan.
        """
        count = len(sample.rows)
        if is_own_model and sample.token_ids is not None:
            return self.embed(sample.token_ids[:count])
        ids = self.token_ids(sample.plan)
        # The sender's last token may be the one that ends the text.
        if len(ids) not in (count, count - 1):
            ids = [ids[index * len(ids) // count] for index in range(count)] if ids else []
        return self.embed(ids[:count])

    def nll(self, scored: Sequence[Scored]) -> torch.Tensor:
        """Return the negative log-likelihood of each plan, in nats per token: `[n]` float32."""
        losses, is_token = self._token_losses(scored)
        return losses.sum(1) / is_token.sum(1)

    def token_nll(self, scored: Sequence[Scored]) -> list[torch.Tensor]:
        """Return the negative log-likelihood of each token of each plan: `[num_tokens]` float32."""
        losses, is_token = self._token_losses(scored)
        return [row[mask] for row, mask in zip(losses, is_token, strict=True)]

    def _token_losses(self, scored: Sequence[Scored]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `[n, longest]` losses, padded on the left, and where the plans' tokens are."""
        plans = [self.embed(each.plan_ids) for each in scored]
        inputs = [
            torch.cat([self._before, each.message, self._after, plan])
            for each, plan in zip(scored, plans, strict=True)
        ]
        longest = max(len(plan) for plan in plans)
        # Padded on the left, so that all plans end at the same position.
        embedded = pad_sequence(inputs, batch_first=True, padding_side="left")
        lengths = torch.tensor([len(each) for each in inputs], device=self.device)
        positions = torch.arange(embedded.shape[1], device=self.device)
        mask = positions >= embedded.shape[1] - lengths[:, None]
        options = {"logits_to_keep": longest + 1} if self._can_keep else {}
        output = self._model(
            inputs_embeds=embedded.to(self._model.dtype),
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(1) - 1).clamp_min(0),
            use_cache=False,
            **options,
        )
        logits = output.logits[:, -longest - 1 : -1].float()
        targets = pad_sequence(
            [torch.tensor(list(each.plan_ids), device=self.device) for each in scored],
            batch_first=True,
            padding_value=-100,
            padding_side="left",
        )
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=-100, reduction="none"
        )
        return losses, targets != -100

    def _render(self, text: str) -> str:
        if not self._tokenizer.chat_template:
            return text
        messages = [{"role": "user", "content": text}]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False
                )
            )
        except Exception as error:
            # The template is foreign code.
            raise BridgeError(f"the model's chat template fails: {error}") from error


def matched_and_other(
    receiver: FrozenReceiver, messages: Sequence[torch.Tensor], samples: Sequence[Sample]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score each plan after its own message and after the next sample's; the last gets the first's.

    Args:
        receiver: reads the messages.
        messages: `[n, H_in]` each, one per sample.
        samples: at least two.

    Returns:
        Nats per token, `[n]` float32 each.
    """
    plans = [receiver.plan_ids(sample) for sample in samples]
    others = [*messages[1:], messages[0]]
    matched = [Scored(*pair) for pair in zip(messages, plans, strict=True)]
    other = [Scored(*pair) for pair in zip(others, plans, strict=True)]
    return receiver.nll(matched), receiver.nll(other)


def hinge(matched: torch.Tensor, other: torch.Tensor, margin: float) -> torch.Tensor:
    """Return by how much the difference falls short of the margin, `[n]`; 0 where it does not."""
    return (margin - (other - matched)).clamp_min(0)
