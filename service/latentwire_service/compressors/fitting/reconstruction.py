"""Kinds that are trained to reconstruct latents. They start as principal components of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latentwire.compressors.base import Compressor
from latentwire.compressors.training_free import training_free
from latentwire_service.compressors.fitting.recipe import Facts, Fitted, Make, Scores, Work
from latentwire_service.compressors.fitting.row_recipes import principal_rows, reduced
from latentwire_service.compressors.fitting.settings import CompressorSettings
from latentwire_service.compressors.modules import Autoencoder, Resampler
from latentwire_service.fitting.progress import FitProgress
from latentwire_service.fitting.samples import Sample
from latentwire_service.fitting.training import Trainer, TrainingOptions

_TRAINING = "training"
_NUM_CHECKED = 16
_STEPS, _LEARNING_RATE = 400, 1e-3
_WARM_UP, _LAST_FACTOR, _MAX_NORM = 10, 0.1, 1.0
_ATTENTION_SIZE, _NUM_HEADS = 256, 8
# Columns that vary less than this part of the most varying one are scaled as if they did.
_MIN_DEVIATION = 1e-6


class ReconstructionObjective:
    """The mean squared error of the estimate.

    Args:
        module: codes rows.
        reduction: chooses the rows that it codes; None: all of them.
        unit: in which errors are measured: the root of the mean variance of a column.
        device: of the module.
    """

    def __init__(
        self,
        module: Autoencoder | Resampler,
        reduction: Compressor | None,
        unit: float,
        device: torch.device,
    ) -> None:
        self._module = module
        self._reduction = reduction
        self._unit = unit
        self._device = device

    def losses(self, batch: Sequence[Sample], step: int | None) -> torch.Tensor:  # noqa: ARG002
        """Return the loss of each sample, as `Objective.losses`."""
        return torch.stack([self._loss(sample) for sample in batch])

    def _loss(self, sample: Sample) -> torch.Tensor:
        rows = torch.tensor(reduced(self._reduction, sample.rows), device=self._device)
        estimate = self._module.rows(self._module.codes(rows), len(rows))
        # Divided before it is squared: the square of a large value would overflow.
        return ((rows - estimate) / self._unit).square().mean()


@dataclass(frozen=True, slots=True)
class ReconstructionRecipe:
    """An autoencoder of rows, or a resampler.

    Attributes:
        settings: of the command; a resampler has k.
        reduction: chooses the rows that an autoencoder codes; None: all of them.
    """

    settings: CompressorSettings
    reduction: Compressor | None

    @property
    def facts(self) -> Facts:
        """As `Recipe.facts`."""
        return Facts(self.settings.dim)

    def fit(self, work: Work) -> Fitted:
        """As `Recipe.fit`."""
        torch.manual_seed(self.settings.seed)
        config = self._config(work.width)
        module = self._module(work.width, config).to(work.device)
        saved = work.checkpoint.load(work.device)
        is_training = saved is not None and saved.phase == _TRAINING
        unit = saved.numbers[-1] if saved and is_training else self._start(work, module)
        reduction = self.reduction if isinstance(module, Autoencoder) else None
        objective = ReconstructionObjective(module, reduction, unit, work.device)
        trainer = Trainer(module, objective, self._options, work.checked[:_NUM_CHECKED])
        if saved and is_training:
            trainer.restore(saved.tensors, saved.numbers[:-1])

        def save() -> None:
            numbers = [*trainer.state.numbers, unit]
            work.checkpoint.save(trainer.tensors(), numbers, _TRAINING)

        work.progress.begin("training", self._options.steps, trainer.state.step)
        trainer.run(
            work.split.batches(self.settings.batch_size),
            lambda loss: work.progress.advance(f"loss {loss:.3f}"),
            save,
        )
        tensors = {name: value.detach() for name, value in module.state_dict().items()}
        return Fitted(tensors, config)

    def scores(
        self,
        make: Make,  # noqa: ARG002
        samples: Sequence[Sample],  # noqa: ARG002
        progress: FitProgress,  # noqa: ARG002
    ) -> dict[str, Scores]:
        """As `Recipe.scores`: there are no others."""
        return {}

    @property
    def _options(self) -> TrainingOptions:
        settings = self.settings
        return TrainingOptions(
            steps=_STEPS if settings.steps is None else settings.steps,
            learning_rate=settings.learning_rate or _LEARNING_RATE,
            check_every=settings.check_every,
            patience=settings.patience,
            batch_size=settings.batch_size,
            warm_up=_WARM_UP,
            last_factor=_LAST_FACTOR,
            max_norm=_MAX_NORM,
        )

    def _config(self, width: int) -> dict[str, Any]:
        size = self.settings.intermediate_size or 2 * width
        if self.settings.kind == "autoencoder":
            return {"rows": self.reduction and self.reduction.name, "intermediate_size": size}
        return {
            "slots": self.settings.k,
            "attention_size": _ATTENTION_SIZE,
            "num_heads": _NUM_HEADS,
            "intermediate_size": size,
        }

    def _module(self, width: int, config: dict[str, Any]) -> Autoencoder | Resampler:
        size, dim = config["intermediate_size"], self.settings.dim
        if self.settings.kind == "autoencoder":
            return Autoencoder(width, dim, size)
        return Resampler(
            width, dim, config["slots"], config["attention_size"], config["num_heads"], size
        )

    @torch.no_grad()
    def _start(self, work: Work, module: Autoencoder | Resampler) -> float:
        """Set the module to principal components; return the root of a column's mean variance."""
        k = self.settings.k
        pooled = training_free("mean-pool", k) if isinstance(module, Resampler) else self.reduction
        principal = principal_rows(work, pooled, self.settings.dim)
        deviation = principal.variance.sqrt()
        least = max(float(deviation.max()) * _MIN_DEVIATION, 1e-30)
        deviation = deviation.clamp_min(least)
        # So that codes have numbers near 1 on average.
        unit = float(principal.variance.mean()) ** 0.5 or 1.0
        module.mean.copy_(principal.mean)
        module.deviation.copy_(deviation)
        module.encode.weight.copy_(principal.components * deviation / unit)
        module.decode.weight.copy_(principal.components.T * unit / deviation[:, None])
        return unit
