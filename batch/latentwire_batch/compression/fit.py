"""Whether compressors fit the latents that they are to compress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentwire.compressors import Compressor, CompressorError
from latentwire.protocol import latent_info
from latentwire_batch.compression.stored_form import StoredForm
from latentwire_batch.errors import UsageError
from latentwire_batch.replicas.identity import ModelIdentity

# What a compressor's source and a dataset's declaration both say, in words.
_FACTS = {
    "hidden_size": "width",
    "model": "model",
    "revision": "revision",
    "layer": "layer",
    "normed": "normed",
}


def check_served(form: StoredForm, model: ModelIdentity) -> None:
    """Refuse compressors that do not fit the latents of the served model.

    Raises:
        UsageError: with both values.
    """
    latent = latent_info(model.model, model.revision)
    facts = {
        "hidden_size": model.hidden_size,
        "model": model.model,
        "revision": model.revision,
        "layer": latent.layer,
        "normed": latent.normed,
    }
    check_source(form, facts, "the served model's")


def check_source(form: StoredForm, facts: Mapping[str, Any], whose: str) -> None:
    """Refuse compressors that do not fit latents.

    Args:
        form: with the compressors.
        facts: what is known of the latents; `hidden_size` is their width.
        whose: latents they are, in words.

    Raises:
        UsageError: with both values.
    """
    for entry in form.compressors:
        compressor = entry.compressor
        for name, wanted in _wanted(compressor).items():
            given = facts.get(name)
            if wanted is not None and given is not None and wanted != given:
                raise UsageError(
                    f"--compressor: {compressor.name} was made for latents of {_FACTS[name]} "
                    f"{wanted}, and {whose} {_FACTS[name]} is {given}"
                )
    try:
        form.encoder(facts["hidden_size"])
    except CompressorError as error:
        raise UsageError(f"--compressor: {error}") from error


def _wanted(compressor: Compressor) -> dict[str, Any]:
    source = compressor.parameters.get("source")
    known = dict(source) if isinstance(source, Mapping) else {}
    return {name: known.get(name) for name in _FACTS} | {"hidden_size": compressor.source_width}
