"""Trains a bridge through the frozen receiver.

The loss is the likelihood of the sender's plan after its own latent, plus a hinge on how much
likelier it is than after another task's latent. Without the hinge, the bridge becomes a soft
prompt: it makes all plans likelier, and carries nothing of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from latentwire_service.bridges.fitting.receiver import FrozenReceiver, Scored
from latentwire_service.bridges.fitting.samples import Sample
from latentwire_service.bridges.modules import BridgeModule

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How to train.

    Attributes:
        steps: most optimizer steps.
        learning_rate: of AdamW, without weight decay.
        margin: nats per token by which a plan shall be likelier after its own latent.
        check_every: steps between two checks on held-out samples.
        patience: checks without improvement after which training stops.
        batch_size: samples of a step.
    """

    steps: int
    learning_rate: float
    margin: float
    check_every: int
    patience: int
    batch_size: int


@dataclass(slots=True)
class TrainingState:
    """Where training is; together with the module and the optimizer, it can be continued.

    Attributes:
        step: optimizer steps done.
        best_loss: smallest loss on held-out samples; None before the first check.
        num_worse: checks since then.
        best: the module's state at that check.
    """

    step: int = 0
    best_loss: float | None = None
    num_worse: int = 0
    best: Tensors = field(default_factory=dict)


class Trainer:
    """Trains one module.

    Args:
        module: on the receiver's device.
        receiver: reads the embeddings.
        options: how to train.
        check_samples: held-out samples that decide when to stop; at least two.
    """

    def __init__(
        self,
        module: BridgeModule,
        receiver: FrozenReceiver,
        options: TrainingOptions,
        check_samples: Sequence[Sample],
    ) -> None:
        self.module = module
        self.state = TrainingState()
        self._receiver = receiver
        self._options = options
        self._check_samples = check_samples
        self._parameters = dict(module.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=options.learning_rate, weight_decay=0.0
        )

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done, or the last checks brought no improvement."""
        is_stopped = self.state.num_worse >= self._options.patience
        return is_stopped or self.state.step >= self._options.steps

    def run(
        self,
        batches: Iterator[list[Sample]],
        on_step: Callable[[float], None],
        on_check: Callable[[], None],
    ) -> None:
        """Train from the current state to the end, and set the module to the best state.

        Args:
            batches: of samples; those of the steps that are done are skipped.
            on_step: called after each step with its loss.
            on_check: called after each check, when the state may be saved.
        """
        for _ in range(self.state.step):
            next(batches)
        if self.state.best_loss is None:
            self._check()
            on_check()
        while not self.is_finished:
            on_step(self._step(next(batches)))
            if self.state.step % self._options.check_every == 0 or self.is_finished:
                self._check()
                on_check()
        self.module.load_state_dict(self.state.best)

    def tensors(self) -> Tensors:
        """Return everything that training needs to continue, apart from numbers."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.state.best.items()}
        for name, parameter in self._parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor], state: TrainingState) -> None:
        """Continue from what `tensors` returned.

        Args:
            tensors: by name.
            state: its best module is among the tensors.
        """
        self.module.load_state_dict(_under("module.", tensors))
        self.state = state
        self.state.best = _under("best.", tensors)
        for name, parameter in self._parameters.items():
            found = {
                key: value
                for key in ("step", "exp_avg", "exp_avg_sq")
                if (value := tensors.get(f"optimizer.{key}.{name}")) is not None
            }
            if found:
                self.optimizer.state[parameter] = found

    def _step(self, batch: Sequence[Sample]) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        matched, other = self._losses(batch)
        loss = (matched + _hinge(matched, other, self._options.margin)).mean()
        # The optimizer holds the bridge's parameters alone; the receiver's have no gradient.
        loss.backward()
        self.optimizer.step()
        self.state.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def _check(self) -> None:
        total = 0.0
        size = max(2, self._options.batch_size)
        samples = self._check_samples
        # One that is left over joins the batch before it: alone, it has no other task.
        for start in range(0, len(samples) - 1, size):
            end = start + size if len(samples) - start - size != 1 else len(samples)
            matched, other = self._losses(samples[start:end])
            total += float((matched + _hinge(matched, other, self._options.margin)).sum())
        if self.state.best_loss is None or total < self.state.best_loss:
            self.state.best_loss, self.state.num_worse = total, 0
            self.state.best = {
                name: value.clone() for name, value in self.module.state_dict().items()
            }
        else:
            self.state.num_worse += 1

    def _losses(self, batch: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the plans' losses after their own latents and after the next sample's."""
        messages = [
            self.module(torch.tensor(sample.rows, device=self.module.device)) for sample in batch
        ]
        plans = [self._receiver.plan_ids(sample) for sample in batch]
        others = [*messages[1:], messages[0]]
        matched = [Scored(*pair) for pair in zip(messages, plans, strict=True)]
        other = [Scored(*pair) for pair in zip(others, plans, strict=True)]
        return self._receiver.nll(matched), self._receiver.nll(other)


def _hinge(matched: torch.Tensor, other: torch.Tensor, margin: float) -> torch.Tensor:
    return (margin - (other - matched)).clamp_min(0)


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
