"""One fit from its settings to a compressor directory."""

from __future__ import annotations

import math
import re
import time
from functools import partial

import torch

from latentwire.bridge_manifest import HeldOut, Source
from latentwire.compressors.base import NAME_PATTERN, CompressorError
from latentwire.compressors.learned import learned_compressor
from latentwire.compressors.manifest import CompressorManifest
from latentwire.compressors.training_free import training_free
from latentwire_service.compressors.fitting.card import HELD_OUT, build_card
from latentwire_service.compressors.fitting.output import check_output, rounded, save_compressor
from latentwire_service.compressors.fitting.recipe import Fitted, Recipe, Scores, Work
from latentwire_service.compressors.fitting.reconstruction import ReconstructionRecipe
from latentwire_service.compressors.fitting.row_recipes import PcaRecipe
from latentwire_service.compressors.fitting.scores import reconstruction_scores
from latentwire_service.compressors.fitting.settings import CompressorSettings
from latentwire_service.engine.hf.loader import pick_device
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.checkpoint import Checkpoint
from latentwire_service.fitting.command import Say
from latentwire_service.fitting.preparation import held_out_samples, limit_threads, open_split
from latentwire_service.fitting.progress import FitProgress
from latentwire_service.fitting.samples import Sample
from latentwire_service.fitting.training import Tensors

# Held-out samples that decide when training stops.
_NUM_CHECKED = 32
# Settings that do not decide the result: they may differ when a fit is continued.
_INDIFFERENT = {
    *("dataset", "output_dir", "overwrite", "name", "max_scored", "device", "threads", "cache_dir"),
    *("trust_remote_code", "store_dtype"),
}


def fit(settings: CompressorSettings, say: Say) -> None:
    """Fit a compressor and write it. A fit that was killed continues.

    Args:
        settings: of the command.
        say: writes a line for the user.

    Raises:
        BridgeError: the settings, the dataset or the output directory cannot be used.
        OSError: the compressor cannot be written.
    """
    started_s = time.monotonic()
    check_output(settings.output_dir, settings.overwrite)
    name = _name(settings)
    split = open_split(settings)
    held_out = held_out_samples(split, settings.max_scored)
    width = held_out[0].rows.shape[1]
    limit_threads(settings)
    recipe = _recipe(settings, width, say)
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    decisive = settings.model_dump(mode="json", exclude=_INDIFFERENT)
    checkpoint = Checkpoint(settings.output_dir, decisive | {"rows": split.dataset.num_rows})
    if settings.overwrite:
        checkpoint.discard()
    with FitProgress(say) as progress:
        work = Work(
            split=split,
            checked=held_out[:_NUM_CHECKED],
            width=width,
            checkpoint=checkpoint,
            progress=progress,
            device=pick_device(settings.device),
            seed=settings.seed,
        )
        fitted = recipe.fit(work)
        tensors = rounded(fitted.tensors, settings.store_dtype == "fp16")
        manifest = _manifest(settings, name, recipe, fitted, work)
        scores = _scores(recipe, manifest, tensors, held_out, progress)
    if not all(math.isfinite(value) for part in scores.values() for value in part.values()):
        checkpoint.discard()
        raise BridgeError(
            "DATASET: the fit gives values that are not finite",
            "Its latents are too large, or --learning-rate is.",
        )
    manifest = manifest.model_copy(update={"scores": scores})
    num_samples = sum(1 for _ in split.training())
    card = build_card(manifest, name, num_samples, settings.seed)
    stored = manifest.model_copy(update={"name": settings.name})
    save_compressor(settings.output_dir, stored, tensors, card)
    checkpoint.discard()
    say(_summary(scores[HELD_OUT]))
    seconds = time.monotonic() - started_s
    say(f"the compressor is in {settings.output_dir.name}, made in {seconds:.0f} s")


def _name(settings: CompressorSettings) -> str:
    name = settings.name or settings.output_dir.resolve().name
    if not re.fullmatch(NAME_PATTERN, name):
        raise BridgeError("--name: required, because the directory's name holds other characters")
    return name


def _recipe(settings: CompressorSettings, width: int, say: Say) -> Recipe:
    if settings.rows is not None and settings.k is None:
        raise BridgeError("--rows: needs --k")
    if settings.kind in ("resampler", "selector") and settings.rows is not None:
        raise BridgeError(f"--rows: kind {settings.kind} has its own choice of rows")
    if settings.kind in ("resampler", "selector") and settings.k is None:
        raise BridgeError(f"--kind: {settings.kind} needs --k")
    if settings.kind == "selector" and settings.bridge is None:
        raise BridgeError("--kind: selector needs --bridge")
    if settings.bridge is not None:
        if settings.kind not in ("resampler", "selector"):
            raise BridgeError("--bridge: only for the kinds resampler and selector")
        # transformers takes seconds to import.
        from latentwire_service.compressors.fitting.receiver_recipes import message_recipe

        return message_recipe(settings, width, say)
    name = settings.rows or "mean-pool"
    reduction = None if settings.k is None else training_free(name, settings.k)
    if settings.kind == "pca":
        return PcaRecipe(settings.dim, reduction)
    return ReconstructionRecipe(settings, reduction)


def _manifest(
    settings: CompressorSettings, name: str, recipe: Recipe, fitted: Fitted, work: Work
) -> CompressorManifest:
    declared, facts = work.split.dataset.declaration, recipe.facts
    return CompressorManifest(
        kind=settings.kind,
        name=name,
        source=Source(
            model=declared.get("model"),
            revision=declared.get("revision"),
            hidden_size=work.width,
            layer=declared.get("layer"),
            normed=declared.get("normed"),
        ),
        k=settings.k,
        dim=facts.dim,
        config=dict(fitted.config),
        output=facts.output,
        receiver=facts.receiver,
        bridge=facts.bridge,
        prompt=facts.prompt,
        held_out=HeldOut(seed=settings.seed, fraction=settings.held_out),
    )


def _scores(
    recipe: Recipe,
    manifest: CompressorManifest,
    tensors: Tensors,
    held_out: list[Sample],
    progress: FitProgress,
) -> dict[str, Scores]:
    """Score the compressor with the values that are stored."""
    progress.begin("scoring", len(held_out))
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        return {HELD_OUT: {"relative_error": math.nan}}
    try:
        compressor = learned_compressor(manifest, arrays, None)
        scores = reconstruction_scores(compressor, held_out, progress.advance)
        make = partial(learned_compressor, manifest, arrays)
        return {HELD_OUT: scores, **recipe.scores(make, held_out, progress)}
    except CompressorError as error:
        raise BridgeError(f"DATASET: cannot be compressed: {error}") from error


def _summary(scores: Scores) -> str:
    return (
        f"{scores['num_tasks']:.0f} held-out latents: relative error "
        f"{scores['relative_error']:.3f}, cosine {scores['cosine']:.3f}, "
        f"{scores['bytes']:,.0f} of {scores['full_bytes']:,.0f} bytes"
    )
