"""The card of a fitted compressor: its `README.md`."""

from __future__ import annotations

from latentwire.compressors.manifest import CompressorManifest
from latentwire_service.compressors.fitting.recipe import Scores

_CARD = """\
---
tags:
- latentwire
- latent-compressor
---

# Compressor {name}

Compresses hidden rows of {sender} (width {width}) to {rows} of width {dim}. Kind: `{kind}`. Made by
`latentwire fit-compressor` from {num_samples} plans, seed {seed}.

{numbers}

Use it with `latentwire compress DATASET --compressor`, `latentwire collect --compressor` or
`latentwire serve --compressor`, and the path of this directory.
"""
_RECONSTRUCTION = """\
Reconstruction of {num_tasks} held-out latents:

| Measure | Mean |
| --- | --- |
| relative error (Frobenius norm) | {relative_error:.3f} |
| cosine of a row and its estimate | {cosine:.3f} |
| bytes of a compressed latent, float32 | {bytes:,.0f} |
| bytes of a latent, float32 | {full_bytes:,.0f} |"""


def build_card(manifest: CompressorManifest, name: str, num_samples: int, seed: int) -> str:
    """Return the card's text.

    Args:
        manifest: of the compressor.
        name: of the compressor.
        num_samples: samples that it was fitted to.
        seed: of the fit.
    """
    rows = "as many rows" if manifest.k is None else f"at most {manifest.k} rows"
    return _CARD.format_map(
        {
            "name": name,
            "kind": manifest.kind,
            "sender": manifest.source.model or "any model",
            "width": manifest.source.hidden_size,
            "rows": rows,
            "dim": manifest.dim,
            "num_samples": num_samples,
            "seed": seed,
            "numbers": _reconstruction(manifest.scores["held_out"]),
        }
    )


def _reconstruction(scores: Scores) -> str:
    return _RECONSTRUCTION.format_map({**scores, "num_tasks": int(scores["num_tasks"])})
