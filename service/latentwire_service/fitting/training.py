"""Training in steps: checks on held-out samples choose the best state and say when to stop.

What is minimized is an `Objective`. Nothing here knows what the trained module is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from latentwire_service.fitting.samples import Sample

Tensors = dict[str, torch.Tensor]


class Objective(Protocol):
    """What training minimizes."""

    def losses(self, batch: Sequence[Sample], step: int | None) -> torch.Tensor:
        """Return the loss of each sample, `[n]` float32.

        Args:
            batch: at least two samples.
            step: number of the step, from 0; None for a check.
        """
        ...


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How to train.

    Attributes:
        steps: most optimizer steps.
        learning_rate: of AdamW, without weight decay.
        check_every: steps between two checks on held-out samples.
        patience: checks without improvement after which training stops.
        batch_size: samples of a step.
        warm_up: steps in which the learning rate rises to its value.
        last_factor: part of the learning rate that a cosine leaves at the last step.
        max_norm: larger gradients are scaled down to this norm; None: none is.
    """

    steps: int
    learning_rate: float
    check_every: int
    patience: int
    batch_size: int
    warm_up: int = 0
    last_factor: float = 1.0
    max_norm: float | None = None

    def learning_rate_factor(self, step: int) -> float:
        """Return the part of the learning rate with which a step is done."""
        wave = 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps)))
        return min(1.0, (step + 1) / max(1, self.warm_up)) * (
            wave * (1 - self.last_factor) + self.last_factor
        )


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

    @property
    def numbers(self) -> list[Any]:
        """The numbers of the state, for JSON."""
        return [self.step, self.best_loss, self.num_worse]


class Trainer:
    """Trains one module.

    Args:
        module: its parameters that require a gradient are trained.
        objective: computes the losses with this module.
        options: how to train.
        check_samples: held-out samples that decide when to stop; at least two.
        slower: factors of the learning rate, by the beginning of a parameter's name.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        objective: Objective,
        options: TrainingOptions,
        check_samples: Sequence[Sample],
        slower: Mapping[str, float] | None = None,
    ) -> None:
        self.module = module
        self.state = TrainingState()
        self._objective = objective
        self._options = options
        self._check_samples = check_samples
        self._parameters = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        groups: list[dict[str, Any]] = [
            {"params": [parameter], "lr": options.learning_rate * _factor(name, slower or {})}
            for name, parameter in self._parameters.items()
        ]
        self._learning_rates = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=0.0)

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

    def restore(self, tensors: Mapping[str, torch.Tensor], numbers: Sequence[Any]) -> None:
        """Continue from what `tensors` and `state.numbers` returned.

        Args:
            tensors: by name.
            numbers: in order.
        """
        self.module.load_state_dict(_under("module.", tensors))
        step, best_loss, num_worse = numbers
        self.state = TrainingState(step, best_loss, num_worse, _under("best.", tensors))
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
        factor = self._options.learning_rate_factor(self.state.step)
        for group, learning_rate in zip(
            self.optimizer.param_groups, self._learning_rates, strict=True
        ):
            group["lr"] = learning_rate * factor
        loss = self._objective.losses(batch, self.state.step).mean()
        loss.backward()
        if self._options.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._options.max_norm)
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
            total += float(self._objective.losses(samples[start:end], None).sum())
        if self.state.best_loss is None or total < self.state.best_loss:
            self.state.best_loss, self.state.num_worse = total, 0
            self.state.best = {
                name: value.clone() for name, value in self.module.state_dict().items()
            }
        else:
            self.state.num_worse += 1


def _factor(name: str, slower: Mapping[str, float]) -> float:
    return next((factor for prefix, factor in slower.items() if name.startswith(prefix)), 1.0)


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
