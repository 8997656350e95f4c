"""The card of a fitted compressor: its `README.md`."""

from __future__ import annotations

from collections.abc import Mapping

from latentwire.compressors.manifest import CompressorManifest
from latentwire_service.compressors.fitting.recipe import Scores

HELD_OUT = "held_out"

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


_MESSAGES = """


The message at the receiver: negative log-likelihood of the sender's plan, in nats per token, after
its own message and after another task's message that was made alike. Without a message it is
{none:.2f}.

| Message | own | another's | gap | tasks with a gap |
| --- | --- | --- | --- | --- |
"""


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
            "numbers": _reconstruction(manifest.scores[HELD_OUT]) + _messages(manifest.scores),
        }
    )


def _reconstruction(scores: Scores) -> str:
    return _RECONSTRUCTION.format_map({**scores, "num_tasks": int(scores["num_tasks"])})


def _messages(scores: Mapping[str, Scores]) -> str:
    """Return the part about messages to a receiver; empty for other kinds."""
    rows = [
        f"| {_message_name(name)} | {part['matched']:.2f} | {part['other']:.2f} | "
        f"{part['gap']:.2f} | {part['wins']:.0%} |\n"
        for name, part in scores.items()
        if "gap" in part
    ]
    if not rows:
        return ""
    return _MESSAGES.format(none=scores["none"]["nll"]) + "".join(rows)


def _message_name(name: str) -> str:
    kind, _, k = name.partition("_")
    names = {
        "full": "full latent through the bridge",
        "first": f"its first {k} rows",
        "message": f"this compressor, {k} rows",
    }
    return names[kind]
