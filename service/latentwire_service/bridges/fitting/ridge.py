"""Ridge regression in closed form, from sums over the samples: memory does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from latentwire_service.bridges.modules import Ridge
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.receiver import FrozenReceiver, Scored
from latentwire_service.fitting.samples import Sample

FACTORS = (1.0, 1.5, 2.0, 2.5, 3.0)


@torch.no_grad()
def fit_ridge(
    module: Ridge,
    samples: Callable[[], Iterable[Sample]],
    embeddings: Callable[[Sample], torch.Tensor],
    penalty: float,
) -> None:
    """Set a module's mean, weight and bias.

    Args:
        module: on the CPU or a device; its window decides what each embedding depends on.
        samples: yields the training samples; called twice.
        embeddings: returns what the rows of a sample stand for, `[n, width]` float32.
        penalty: added to the diagonal of the normal equations, but not for the bias.

    Raises:
        BridgeError: there is no sample, or its rows have another width or are too large.
    """
    device = module.device
    module.mean.copy_(_mean(samples(), module))
    size = module.weight.shape[0] + 1
    # In float64: sums over many rows lose digits that the inverse needs.
    gram = torch.zeros(size, size, dtype=torch.float64, device=device)
    cross = torch.zeros(size, module.width, dtype=torch.float64, device=device)
    for sample in samples():
        targets = embeddings(sample)
        windows = module.windows(torch.tensor(sample.rows, device=device))[: len(targets)]
        inputs = torch.cat([windows, torch.ones_like(windows[:, :1])], dim=1)
        gram += (inputs.T @ inputs).double()
        cross += (inputs.T @ targets.to(device)).double()
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise BridgeError("DATASET: its latents are too large for a fit")
    gram.diagonal()[:-1] += penalty
    solution = torch.linalg.solve(gram, cross)
    module.weight.copy_(solution[:-1].float())
    module.bias.copy_(solution[-1].float())


@torch.no_grad()
def tune_factor(
    module: Ridge,
    receiver: FrozenReceiver,
    samples: Sequence[Sample],
    batch_size: int,
    on_progress: Callable[[], None],
) -> None:
    """Set the factor of the output with which the receiver finds the plans most likely.

    Args:
        module: fitted by `fit_ridge`.
        receiver: reads the embeddings.
        samples: to choose on; at least one.
        batch_size: samples computed together.
        on_progress: called after each factor.
    """
    losses = []
    for factor in FACTORS:
        module.factor.fill_(factor)
        total = 0.0
        for start in range(0, len(samples), batch_size):
            scored = [
                Scored(
                    module(torch.tensor(each.rows, device=module.device)), receiver.plan_ids(each)
                )
                for each in samples[start : start + batch_size]
            ]
            total += float(receiver.nll(scored).sum())
        losses.append(total)
        on_progress()
    module.factor.fill_(FACTORS[losses.index(min(losses))])


def _mean(samples: Iterable[Sample], module: Ridge) -> torch.Tensor:
    total = torch.zeros(module.mean.shape[0], dtype=torch.float64)
    count = 0
    for sample in samples:
        if sample.rows.shape[1] != len(total):
            raise BridgeError(
                f"DATASET: a latent is {sample.rows.shape[1]} wide, not {len(total)}",
                "--sender-width states the width of the sender's rows.",
            )
        total += torch.tensor(sample.rows).double().sum(0)
        count += len(sample.rows)
    if not count:
        raise BridgeError("DATASET: there is no usable row for training")
    return (total / count).float()
