"""What each row of a latent gains at the receiver, and a small network that predicts it.

The gain of a row is by how much likelier its token is after the full latent than after nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentwire.compressors.base import Rows
from latentwire.compressors.message_map import scorer_inputs
from latentwire_service.bridges.modules import BridgeModule
from latentwire_service.compressors.fitting.recipe import Work
from latentwire_service.compressors.modules import GainScorer
from latentwire_service.fitting.receiver import FrozenReceiver, Scored
from latentwire_service.fitting.samples import Sample
from latentwire_service.fitting.training import Tensors

GAINS = "gains"
SCORER_SIZE = 256
_MAX_PLANS = 420
_MAX_BYTES = 256 << 20
_SAVE_INTERVAL_S = 30.0
_EPOCHS, _BATCH_ROWS = 12, 256
_LEARNING_RATE, _WEIGHT_DECAY = 1e-3, 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One latent with the gains of its first rows.

    Attributes:
        rows: `[L, H]` float32.
        gains: `[n]` float32, n at most L.
    """

    rows: Rows
    gains: torch.Tensor


@torch.no_grad()
def measured_gains(
    bridge: BridgeModule, receiver: FrozenReceiver, batch: Sequence[Sample]
) -> list[Measured]:
    """Measure the gains of samples: two passes of the receiver each.

    Args:
        bridge: on the receiver's device.
        receiver: reads the latents.
        batch: samples computed together.
    """
    plans = [receiver.plan_ids(sample) for sample in batch]
    nothing = torch.zeros(0, receiver.width, device=receiver.device)
    full = [bridge(torch.tensor(sample.rows, device=receiver.device)) for sample in batch]
    without = receiver.token_nll([Scored(nothing, plan) for plan in plans])
    after = receiver.token_nll([Scored(*pair) for pair in zip(full, plans, strict=True)])
    return [
        Measured(sample.rows, _of_rows((one - other).cpu(), len(sample.rows)))
        for sample, one, other in zip(batch, without, after, strict=True)
    ]


def training_gains(
    work: Work, bridge: BridgeModule, receiver: FrozenReceiver, batch_size: int
) -> list[Measured]:
    """Measure the gains of some training samples; a fit that was killed continues.

    Args:
        work: of the fit.
        bridge: on the receiver's device.
        receiver: reads the latents.
        batch_size: samples computed together.
    """
    batches = list(_sampled(work, batch_size))
    saved = work.checkpoint.load(torch.device("cpu"))
    known: list[torch.Tensor] = []
    if saved is not None and saved.phase == GAINS:
        known = list(saved.tensors["gains"].split(saved.numbers))
    work.progress.begin("gains", len(batches))
    found: list[Measured] = []
    saved_s = time.monotonic()
    for batch in batches:
        if len(found) < len(known):
            gains = known[len(found) : len(found) + len(batch)]
            found += [Measured(each.rows, gain) for each, gain in zip(batch, gains, strict=True)]
        else:
            found += measured_gains(bridge, receiver, batch)
            if time.monotonic() - saved_s >= _SAVE_INTERVAL_S:
                _save(work, found)
                saved_s = time.monotonic()
        work.progress.advance()
    return found


def fit_scorer(work: Work, training: Sequence[Measured], checked: Sequence[Measured]) -> Tensors:
    """Train the network; the epoch that agrees best with held-out gains is kept.

    Args:
        work: of the fit.
        training: gains to learn.
        checked: held-out gains.

    Returns:
        Its tensors, each with `scorer.` before its name.
    """
    torch.manual_seed(work.seed)
    scorer = GainScorer(work.width, SCORER_SIZE)
    optimizer = torch.optim.AdamW(
        scorer.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
    )
    inputs, wanted = _stacked(training)
    check_inputs, check_wanted = _stacked(checked)
    wanted = wanted - wanted.mean()
    best, best_agreement = _copied(scorer), -2.0
    generator = torch.Generator().manual_seed(work.seed)
    work.progress.begin("scorer", _EPOCHS)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(wanted), generator=generator).split(_BATCH_ROWS):
            made = scorer(*(each[chosen] for each in inputs))
            optimizer.zero_grad()
            torch.nn.functional.smooth_l1_loss(made, wanted[chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            made = scorer(*check_inputs)
        agreement = float(torch.corrcoef(torch.stack([made, check_wanted]))[0, 1])
        if agreement > best_agreement:
            best_agreement = agreement
            best = _copied(scorer)
        work.progress.advance(f"correlation {agreement:.2f}")
    return {f"scorer.{name}": value for name, value in best.items()}


def _copied(module: torch.nn.Module) -> Tensors:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _of_rows(gains: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return the gain of each row's token: as `FrozenReceiver.aligned_embeddings` aligns them."""
    count = len(gains)
    # The sender's last token may be the one that ends the text.
    if count in (num_rows, num_rows - 1):
        return gains
    return gains[torch.arange(num_rows) * count // num_rows]


def _sampled(work: Work, batch_size: int) -> Iterator[list[Sample]]:
    """Yield batches of random training samples, a bounded number of bytes of them."""
    num_bytes = 0
    num_batches = -(-_MAX_PLANS // batch_size)
    draw = random.Random(f"{work.seed}:gains")
    total = sum(1 for _ in work.split.training())
    chosen = set(draw.sample(range(total), min(total, num_batches * batch_size)))
    batch: list[Sample] = []
    for index, sample in enumerate(work.split.training()):
        if index not in chosen or num_bytes > _MAX_BYTES:
            continue
        num_bytes += sample.rows.nbytes
        batch.append(sample)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _save(work: Work, found: Sequence[Measured]) -> None:
    gains = torch.cat([each.gains for each in found])
    work.checkpoint.save({"gains": gains}, [len(each.gains) for each in found], GAINS)


def _stacked(measured: Sequence[Measured]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    parts = [[part[: len(each.gains)] for part in scorer_inputs(each.rows)] for each in measured]
    inputs = tuple(torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
    return inputs, torch.cat([each.gains for each in measured])
