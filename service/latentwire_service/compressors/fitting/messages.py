"""Messages of chosen rows through the frozen receiver: windows, what training minimizes, scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from latentwire.compressors.base import COMPRESSED, Rows
from latentwire.compressors.message_map import RowChoice
from latentwire_service.bridges.modules import BridgeModule
from latentwire_service.compressors.fitting.recipe import Make, Scores
from latentwire_service.compressors.modules import MessageMixer
from latentwire_service.fitting.progress import FitProgress
from latentwire_service.fitting.receiver import (
    FrozenReceiver,
    Scored,
    hinge,
    matched_and_other,
)
from latentwire_service.fitting.samples import Sample

# How many times k rows from the start on may be chosen. With 1, these are the first k.
FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0)
_BATCH = 16

Messages = Callable[[Sample], torch.Tensor]


def served_ks(k: int) -> list[int]:
    """Return the numbers of rows for which a fit chooses and trains: k, and its halves down to 8.

    Args:
        k: most rows of a message.
    """
    found = [k]
    while found[-1] // 2 >= 8:
        found.append(found[-1] // 2)
    return found


@torch.no_grad()
def tuned_windows(
    choice: RowChoice,
    bridge: BridgeModule,
    receiver: FrozenReceiver,
    samples: Sequence[Sample],
    ks: Sequence[int],
    progress: FitProgress,
) -> dict[str, float]:
    """Choose the window for each k by the gap between a message and another task's.

    Args:
        choice: its scorer is fitted; its windows are not read.
        bridge: on the receiver's device.
        receiver: reads the messages.
        samples: held-out ones; at least two.
        ks: numbers of rows.
        progress: shows the phase.
    """
    embeddings = {
        id(each): bridge(torch.tensor(each.rows, device=receiver.device)) for each in samples
    }
    progress.begin("windows", len(ks) * len(FACTORS))
    windows = {}
    for k in ks:
        gaps = []
        for factor in FACTORS:
            tried = RowChoice(choice.tensors, {str(k): factor})
            messages = {id(each): embeddings[id(each)][_places(tried, each, k)] for each in samples}
            matched, other = message_nll(receiver, samples, partial(_message_of, messages))
            gaps.append(float((other - matched).mean()))
            progress.advance(f"k {k}: gap {gaps[-1]:.3f}")
        windows[str(k)] = FACTORS[gaps.index(max(gaps))]
    return windows


def _message_of(messages: Mapping[int, torch.Tensor], sample: Sample) -> torch.Tensor:
    return messages[id(sample)]


class MessageObjective:
    """The loss of mixed messages: k takes turns over the steps, and a check has all of them.

    Args:
        mixer: on the receiver's device.
        choice: chooses the rows.
        receiver: reads the messages.
        ks: numbers of rows.
        margin: nats per token by which a plan shall be likelier after its own message.
        full: returns the message of a full latent, `[L, width]`.
        cosine: weight of 1 less the cosine between the mean row of a message and that of the full
            latent's.
    """

    def __init__(
        self,
        mixer: MessageMixer,
        choice: RowChoice,
        receiver: FrozenReceiver,
        ks: Sequence[int],
        margin: float,
        full: Messages,
        cosine: float,
    ) -> None:
        self._mixer = mixer
        self._choice = choice
        self._receiver = receiver
        self._ks = ks
        self._margin = margin
        self._full = full
        self._cosine = cosine

    def losses(self, batch: Sequence[Sample], step: int | None) -> torch.Tensor:
        """Return the loss of each sample, as `Objective.losses`."""
        ks = self._ks if step is None else [self._ks[step % len(self._ks)]]
        return torch.stack([self._losses(batch, k) for k in ks]).sum(0)

    def _losses(self, batch: Sequence[Sample], k: int) -> torch.Tensor:
        messages = [
            self._mixer(
                torch.tensor(sample.rows, device=self._receiver.device),
                _places(self._choice, sample, k).to(self._receiver.device),
            )
            for sample in batch
        ]
        matched, other = matched_and_other(self._receiver, messages, batch)
        loss = matched + hinge(matched, other, self._margin)
        if not self._cosine:
            return loss
        return loss + self._cosine * self._distances(batch, messages)

    def _distances(self, batch: Sequence[Sample], messages: Sequence[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            full = torch.stack([self._full(sample).mean(0) for sample in batch])
        means = torch.stack([message.mean(0) for message in messages])
        return 1 - torch.nn.functional.cosine_similarity(means, full)


@torch.no_grad()
def message_scores(
    make: Make,
    ks: Sequence[int],
    bridge: Messages,
    receiver: FrozenReceiver,
    samples: Sequence[Sample],
    progress: FitProgress,
) -> dict[str, Scores]:
    """Score messages at the receiver, in nats per token of the sender's plan.

    Args:
        make: makes the compressor with a k.
        ks: numbers of rows.
        bridge: returns the message of a full latent.
        receiver: reads the messages.
        samples: held-out ones, at least two.
        progress: shows the phase.

    Returns:
        For `full`, `first_K` and `message_K` of each k: the means `matched` and `other`, their
        difference `gap`, and `wins`, the part of the tasks whose own message is the better one.
        For `none`: the mean `nll`.
    """

    def compressed(k: int) -> Messages:
        compressor = make(k)
        return lambda sample: torch.tensor(
            compressor.compress(sample.rows)[COMPRESSED], device=receiver.device
        )

    def first(k: int) -> Messages:
        return lambda sample: bridge(sample)[:k]

    messages: dict[str, Messages] = {"full": bridge}
    messages |= {f"first_{k}": first(k) for k in ks}
    messages |= {f"message_{k}": compressed(k) for k in ks}
    progress.begin("messages", len(messages) + 1)
    scores = {}
    for name, message in messages.items():
        scores[name] = _compared(*message_nll(receiver, samples, message))
        progress.advance(f"{name}: gap {scores[name]['gap']:.3f}")
    nothing = torch.zeros(0, receiver.width, device=receiver.device)
    nll, _ = message_nll(receiver, samples, lambda _: nothing)
    progress.advance()
    return {**scores, "none": {"nll": round(float(nll.mean()), 4)}}


@torch.no_grad()
def message_nll(
    receiver: FrozenReceiver, samples: Sequence[Sample], message: Messages
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of each plan after its own message and after the next sample's, `[n]` each.

    Args:
        receiver: reads the messages.
        samples: at least two; the last one gets the first one's message, too.
        message: of a sample.
    """
    plans = [receiver.plan_ids(sample) for sample in samples]
    own = [message(sample) for sample in samples]
    others = [*own[1:], own[0]]
    found: list[list[torch.Tensor]] = [[], []]
    for start in range(0, len(samples), _BATCH):
        chosen = slice(start, start + _BATCH)
        for parts, messages in zip(found, (own, others), strict=True):
            pairs = zip(messages[chosen], plans[chosen], strict=True)
            parts.append(receiver.nll([Scored(*pair) for pair in pairs]).cpu())
    return torch.cat(found[0]), torch.cat(found[1])


def _compared(matched: torch.Tensor, other: torch.Tensor) -> Scores:
    return {
        "matched": round(float(matched.mean()), 4),
        "other": round(float(other.mean()), 4),
        "gap": round(float((other - matched).mean()), 4),
        "wins": round(float((other > matched).float().mean()), 4),
    }


def _places(choice: RowChoice, sample: Sample, k: int) -> torch.Tensor:
    return torch.from_numpy(choice.places(sample.rows, k).astype(np.int64))


def scorer_arrays(
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, Rows]:
    """Return the scorer's tensors for `RowChoice`."""
    return {
        name: value.detach().cpu().numpy()
        for name, value in tensors.items()
        if name.startswith("scorer.")
    }
