"""What a dataset card says about compressed latents, and the card of a rewritten dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentwire_batch.dataset.card import (
    build_card,
    column_lines,
    compressed_section,
    front_matter,
    same_rows_text,
    splits_in,
    table,
)
from latentwire_batch.dataset.card_reading import reading_text
from latentwire_batch.dataset.schema import FileSchema
from latentwire_batch.output.layout import CARD_MARK

_PLAIN_BODY = """
{mark}

# {title}

{num_rows} rows, rewritten by latentwire {version} with `latentwire compress`.

| Column | Meaning |
| --- | --- |
{columns}
{compressed}
{reading}
{same_rows}## Counts

| Count | Value |
| --- | --- |
{counts}
"""


def build_rewritten_card(manifest: Mapping[str, Any], schema: FileSchema, width: int) -> str:
    """Build the card of a dataset that `latentwire compress` wrote.

    Args:
        manifest: of the new dataset.
        schema: of its files.
        width: of the full latents.
    """
    try:
        return build_card(manifest, schema)
    except (LookupError, TypeError, ValueError, AttributeError):
        # Another program wrote the dataset that was read, or nothing says how it was made.
        return _plain_card(manifest, schema, width)


def _plain_card(manifest: Mapping[str, Any], schema: FileSchema, width: int) -> str:
    title, splits = "Compressed latents", splits_in(manifest)
    body = _PLAIN_BODY.format(
        mark=CARD_MARK,
        title=title,
        num_rows=manifest["counts"]["finished"],
        version=manifest["compression"]["versions"]["latentwire"],
        columns=column_lines(schema.columns, width),
        compressed=compressed_section(manifest),
        reading=reading_text(schema.matrices, splits),
        same_rows=same_rows_text(splits),
        counts=table(manifest["counts"]),
    )
    return front_matter(title, schema, splits) + body
