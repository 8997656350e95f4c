"""The dataset card: the `README.md` of an output, as the Hugging Face hub reads it.

Made from the manifest and the dataset's columns alone, so it holds no host name, address or path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from latentwire.protocol import LatentInfo, latent_info
from latentwire_batch.dataset.card_reading import reading_text
from latentwire_batch.dataset.manifest import cut_plans
from latentwire_batch.dataset.matrices import Column
from latentwire_batch.dataset.schema import DatasetSchema
from latentwire_batch.output.layout import CARD_MARK, DATA_NAME

_FRONT_MATTER = """\
---
pretty_name: {pretty_name}
tags:
- latentwire
- hidden-states
configs:
- config_name: default
  data_files:
  - split: train
    path: {data_name}
dataset_info:
  features:
{features}
---
"""

_BODY = """
{mark}

# {title}

Plans and latents of {num_rows} tasks, made by latentwire {version} with the model {model}.

| Column | Meaning |
| --- | --- |
{columns}

{meaning} {kept}{cut}

{reading}
`{data_name}` holds the same rows.

## How it was made

| Setting | Value |
| --- | --- |
{settings}

## Counts

| Count | Value |
| --- | --- |
{counts}
"""


def build_card(manifest: Mapping[str, Any], schema: DatasetSchema) -> str:
    """Build the card of a finished output.

    Args:
        manifest: of the output.
        schema: of its files.
    """
    model, settings, counts = manifest["model"], manifest["settings"], manifest["counts"]
    name = str(model["model"])
    title = f"Latents of {name}"
    k = settings["k"]
    columns = schema.columns
    body = _BODY.format(
        mark=CARD_MARK,
        title=_one_line(title),
        num_rows=counts["finished"],
        version=manifest["versions"]["latentwire"],
        model=_code(name),
        columns=_columns(columns, model["hidden_size"]),
        cut=_cut(counts, settings),
        meaning=_latent(manifest).meaning,
        kept="All rows are kept." if k is None else f"At most the first {k} rows are kept.",
        reading=reading_text(schema.matrices),
        data_name=DATA_NAME,
        settings=_table(_settings(model, settings)),
        counts=_table(_counts(counts)),
    )
    # JSON text is YAML text.
    head = _FRONT_MATTER.format(
        pretty_name=json.dumps(title), data_name=DATA_NAME, features=_features(columns)
    )
    return head + body


def _latent(manifest: Mapping[str, Any]) -> LatentInfo:
    model = manifest["model"]
    return latent_info(model["model"], model["revision"]).model_copy(update=manifest["latent"])


def _features(columns: Iterable[Column]) -> str:
    lines: list[str] = []
    for column in columns:
        lines += [f"  - name: {column.name}", *_feature_lines(column.feature, "    ")]
    return "\n".join(lines)


def _feature_lines(feature: Mapping[str, Any], indent: str) -> list[str]:
    """Write a feature in the card's notation, where a list's element needs no name."""
    if feature["_type"] == "Value":
        return [f"{indent}dtype: {feature['dtype']}"]
    element = feature["feature"]
    if element["_type"] == "Value":
        return [f"{indent}sequence: {element['dtype']}"]
    return [f"{indent}sequence:", *_feature_lines(element, indent + "  ")]


def _columns(columns: Iterable[Column], width: int) -> str:
    return "\n".join(
        f"| `{column.name}` | {column.meaning.replace('{width}', str(width))} |"
        for column in columns
    )


def _cut(counts: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """State how many plans a limit cut; empty for none."""
    num_cut = cut_plans(counts["finish_reasons"])
    if not num_cut:
        return ""
    limit = settings["sampling"]["max_new_tokens"]
    return (
        f"\n\n{num_cut} of {counts['finished']} plans are cut: they reached a limit "
        f"(`max_new_tokens` is {limit}) before the model ended them."
    )


def _settings(model: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: value for name, value in model.items() if value is not None},
        **settings["prompt"],
        **settings["sampling"],
        "k": settings["k"],
        "seed": settings["seed"],
        **settings.get("input", {}),
        "tasks (sha256)": settings["data"]["sha256"],
    }


def _counts(counts: Mapping[str, Any]) -> dict[str, Any]:
    simple = {name: value for name, value in counts.items() if not isinstance(value, Mapping)}
    return simple | {
        f"finish_reason {reason}": number for reason, number in counts["finish_reasons"].items()
    }


def _table(values: Mapping[str, Any]) -> str:
    return "\n".join(f"| {name} | {_code(json.dumps(v))} |" for name, v in values.items())


def _code(text: str) -> str:
    """Quote a text so that nothing in it is markup or ends a table cell."""
    fence = "`"
    while fence in text:
        fence += "`"
    padding = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{padding}{_one_line(text)}{padding}{fence}".replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
