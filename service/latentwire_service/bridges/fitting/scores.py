"""How well a bridge carries plans to held-out tasks, in nats per token of the sender's plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from latentwire_service.bridges.modules import BridgeModule
from latentwire_service.fitting.receiver import FrozenReceiver, Scored
from latentwire_service.fitting.samples import Sample

Scores = dict[str, float]


@torch.no_grad()
def score(
    module: BridgeModule,
    receiver: FrozenReceiver,
    samples: Sequence[Sample],
    batch_size: int,
    on_progress: Callable[[], None] = lambda: None,
) -> Scores:
    """Score four messages: the plan's text, nothing, its latent, and another task's latent.

    Args:
        module: the bridge's map.
        receiver: reads the messages.
        samples: at least two.
        batch_size: plans scored together.
        on_progress: called after each batch.

    Returns:
        Means over the samples by the name of the message, and `num_tasks`.
    """
    totals = dict.fromkeys(("text", "none", "matched", "other"), 0.0)
    nothing = torch.zeros(0, receiver.width, device=receiver.device)
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        plans = [receiver.plan_ids(sample) for sample in batch]
        # The next sample's; the last one gets the first one's.
        others = [samples[(start + index + 1) % len(samples)] for index in range(len(batch))]
        messages = {
            "text": [receiver.embed(plan) for plan in plans],
            "none": [nothing] * len(batch),
            "matched": [_mapped(module, sample) for sample in batch],
            "other": [_mapped(module, sample) for sample in others],
        }
        for name, each in messages.items():
            scored = [Scored(*pair) for pair in zip(each, plans, strict=True)]
            totals[name] += float(receiver.nll(scored).sum())
        on_progress()
    means = {name: round(total / len(samples), 4) for name, total in totals.items()}
    return {**means, "num_tasks": float(len(samples))}


def _mapped(module: BridgeModule, sample: Sample) -> torch.Tensor:
    result: torch.Tensor = module(torch.tensor(sample.rows, device=module.device))
    return result
