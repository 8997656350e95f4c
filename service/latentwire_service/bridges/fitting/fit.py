"""One fit from its settings to a bridge directory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from latentwire_service.bridges.directory import make_module, save_bridge
from latentwire_service.bridges.fitting.card import build_card
from latentwire_service.bridges.fitting.objective import BridgeObjective
from latentwire_service.bridges.fitting.ridge import FACTORS, fit_ridge, tune_factor
from latentwire_service.bridges.fitting.scores import Scores, score
from latentwire_service.bridges.fitting.settings import FitSettings
from latentwire_service.bridges.manifest import (
    MANIFEST_NAME,
    Config,
    HeldOut,
    Manifest,
    Prompt,
    Source,
    Target,
)
from latentwire_service.bridges.modules import BridgeModule, Ridge
from latentwire_service.engine.hf.loader import LoadedModel
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.checkpoint import Checkpoint
from latentwire_service.fitting.preparation import (
    held_out_samples,
    limit_threads,
    load_receiver,
    open_split,
)
from latentwire_service.fitting.progress import FitProgress
from latentwire_service.fitting.receiver import FrozenReceiver
from latentwire_service.fitting.samples import Dataset, Sample, Split
from latentwire_service.fitting.training import Trainer, TrainingOptions

# Held-out samples on which the factor is tuned and training is checked. More cost more time than
# they gain: the choice is between a few values.
_NUM_CHECKED = 16
# Settings that decide the result; the others may differ when a fit is continued.
_DECISIVE = (
    *("kind", "model", "revision", "dtype", "sender_width", "limit", "max_rows", "held_out"),
    *("seed", "steps", "batch_size", "learning_rate", "margin", "check_every", "patience"),
    *("ridge", "window", "intermediate_size", "before", "after"),
)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a fit works with."""

    settings: FitSettings
    split: Split
    held_out: list[Sample]
    loaded: LoadedModel
    receiver: FrozenReceiver
    manifest: Manifest
    progress: FitProgress

    @property
    def is_own_model(self) -> bool:
        """Whether the sender is the receiver's model."""
        return self.manifest.source.model == self.manifest.receiver.model

    @property
    def checked(self) -> list[Sample]:
        """The held-out samples that decide choices."""
        return self.held_out[:_NUM_CHECKED]


def fit(settings: FitSettings, say: Callable[[str], None]) -> None:
    """Fit a bridge and write it. A fit that was killed continues.

    Args:
        settings: of the command.
        say: writes a line for the user.

    Raises:
        BridgeError: the dataset, the model or the output directory cannot be used.
        ModelError: the model cannot be loaded.
        OSError: the bridge cannot be written.
    """
    started_s = time.monotonic()
    _check_output(settings)
    split = open_split(settings, settings.sender_width)
    held_out = held_out_samples(split, settings.max_scored)
    limit_threads(settings)
    loaded = load_receiver(settings)
    receiver = FrozenReceiver(loaded, settings.before, settings.after, settings.max_rows)
    manifest = _manifest(settings, split.dataset, loaded, receiver, held_out[0])
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    decisive = settings.model_dump(include=set(_DECISIVE)) | {"rows": split.dataset.num_rows}
    checkpoint = Checkpoint(settings.output_dir, decisive)
    if settings.overwrite:
        checkpoint.discard()
    with FitProgress(say) as progress:
        parts = _Parts(settings, split, held_out, loaded, receiver, manifest, progress)
        module = _fitted(parts, checkpoint)
        progress.begin("scoring", -(-len(held_out) // settings.batch_size))
        scores = score(module, receiver, held_out, settings.batch_size, progress.advance)
    if not all(map(math.isfinite, scores.values())):
        checkpoint.discard()
        raise BridgeError(
            "DATASET: the fit gives values that are not finite",
            "Its latents are too large, or --learning-rate is.",
        )
    _write(parts, module, scores)
    checkpoint.discard()
    say(
        f"nats per token on {len(held_out)} held-out tasks: text {scores['text']:.2f}, "
        f"none {scores['none']:.2f}, matched {scores['matched']:.2f}, "
        f"another task's {scores['other']:.2f}"
    )
    seconds = time.monotonic() - started_s
    say(f"the bridge is in {settings.output_dir.name}, made in {seconds:.0f} s")


def _check_output(settings: FitSettings) -> None:
    manifest = settings.output_dir / MANIFEST_NAME
    if not manifest.exists():
        return
    if not settings.overwrite:
        raise BridgeError("--output-dir: holds a bridge", "--overwrite replaces it.")


def _manifest(
    settings: FitSettings,
    dataset: Dataset,
    loaded: LoadedModel,
    receiver: FrozenReceiver,
    first: Sample,
) -> Manifest:
    declared = dataset.declaration
    width = receiver.width
    intermediate_size = settings.intermediate_size or 4 * width
    return Manifest(
        kind=settings.kind,
        name=settings.name,
        source=Source(
            model=declared.get("model"),
            revision=declared.get("revision"),
            hidden_size=settings.sender_width or first.rows.shape[1],
            layer=declared.get("layer"),
            normed=declared.get("normed"),
        ),
        receiver=Target(model=loaded.model_id, revision=loaded.revision, hidden_size=width),
        config=Config(
            window=settings.window,
            intermediate_size=intermediate_size if settings.kind == "mlp" else None,
        ),
        prompt=Prompt(before=settings.before, after=settings.after),
        held_out=HeldOut(seed=settings.seed, fraction=settings.held_out),
    )


def _fitted(parts: _Parts, checkpoint: Checkpoint) -> BridgeModule:
    """Make the module, fit it in closed form, train it: as far as its kind needs."""
    torch.manual_seed(parts.settings.seed)
    module = make_module(parts.manifest).to(parts.receiver.device)
    if parts.settings.kind == "ridge":
        _fit_ridge(parts, module)
        return module
    objective = BridgeObjective(module, parts.receiver, parts.settings.margin)
    trainer = Trainer(module, objective, _options(parts.settings), parts.checked)
    saved = checkpoint.load(parts.receiver.device)
    if saved is not None:
        trainer.restore(saved.tensors, saved.numbers)
    elif parts.settings.kind == "mlp":
        _fit_ridge(parts, module)

    def save() -> None:
        checkpoint.save(trainer.tensors(), trainer.state.numbers)

    parts.progress.begin("training", parts.settings.steps, trainer.state.step)
    trainer.run(
        parts.split.batches(parts.settings.batch_size),
        lambda loss: parts.progress.advance(f"loss {loss:.2f}"),
        save,
    )
    return module


def _fit_ridge(parts: _Parts, module: BridgeModule) -> None:
    assert isinstance(module, Ridge), "of this kind"
    parts.progress.begin("ridge", 1 + len(FACTORS))
    embeddings = partial(parts.receiver.aligned_embeddings, is_own_model=parts.is_own_model)
    fit_ridge(module, parts.split.training, embeddings, parts.settings.ridge)
    parts.progress.advance()
    tune_factor(
        module,
        parts.receiver,
        parts.checked,
        parts.settings.batch_size,
        parts.progress.advance,
    )


def _options(settings: FitSettings) -> TrainingOptions:
    return TrainingOptions(
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        check_every=settings.check_every,
        patience=settings.patience,
        batch_size=settings.batch_size,
    )


def _write(parts: _Parts, module: BridgeModule, scores: Scores) -> None:
    settings = parts.settings
    manifest = parts.manifest.model_copy(update={"scores": {"held_out": scores}})
    num_samples = sum(1 for _ in parts.split.training())
    name = settings.name or settings.output_dir.resolve().name
    card = build_card(manifest, name, scores, num_samples, settings.seed)
    save_bridge(settings.output_dir, manifest, module.state_dict(), card, _dtype(settings, module))


def _dtype(settings: FitSettings, module: BridgeModule) -> torch.dtype:
    """Return the dtype to store, in which all values are finite."""
    largest = max(float(tensor.abs().max()) for tensor in module.state_dict().values())
    is_half = settings.store_dtype == "fp16" and largest <= torch.finfo(torch.float16).max
    return torch.float16 if is_half else torch.float32
