"""The card of a fitted bridge: its `README.md`."""

from __future__ import annotations

from collections.abc import Mapping

from latentwire_service.bridges.manifest import Manifest

_CARD = """\
---
tags:
- latentwire
- latent-bridge
---

# Bridge {name}

Maps hidden rows of {sender} (width {sender_width}) to input embeddings of {receiver} (width
{width}). Kind: `{kind}`. Made by `latentwire fit-bridge` from {num_samples} plans, seed {seed}.

The message stood in a user turn: {before}latent{after}.

Negative log-likelihood of the sender's plan at the receiver, in nats per token, over {num_tasks}
tasks that were held out of training:

| Message | NLL |
| --- | --- |
| the plan's text | {text:.2f} |
| none | {none:.2f} |
| its latent, through this bridge | {matched:.2f} |
| another task's latent | {other:.2f} |

A latent carries something if its own row is below "none" and below "another task's latent".
Likelihood that moves does not prove that decisions move.

Serve it with `latentwire serve --bridge` and the path of this directory.
"""


def build_card(
    manifest: Manifest, name: str, scores: Mapping[str, float], num_samples: int, seed: int
) -> str:
    """Return the card's text.

    Args:
        manifest: of the bridge.
        name: of the bridge.
        scores: as `score` returned them.
        num_samples: samples that it was fitted on.
        seed: of the fit.
    """
    prompt = manifest.prompt
    assert prompt is not None, "a fitted bridge has a prompt"
    return _CARD.format_map(
        {
            "name": name,
            "kind": manifest.kind,
            "sender": manifest.source.model or "any model",
            "sender_width": manifest.source.hidden_size,
            "receiver": manifest.receiver.model,
            "width": manifest.receiver.hidden_size,
            "num_samples": num_samples,
            "seed": seed,
            "before": f"`{prompt.before}`, then the " if prompt.before else "the ",
            "after": f", then `{prompt.after}`" if prompt.after else "",
            **scores,
            "num_tasks": int(scores["num_tasks"]),
        }
    )
