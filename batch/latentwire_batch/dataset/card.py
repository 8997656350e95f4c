"""The dataset card: the `README.md` of an output, as the Hugging Face hub reads it.

Made from the manifest and the dataset's columns alone, so it holds no host name, address or path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from latentwire.protocol import LatentInfo, latent_info
from latentwire.split_files import DATA_DIRECTORY
from latentwire_batch.dataset.card_reading import reading_text
from latentwire_batch.dataset.manifest import cut_plans
from latentwire_batch.dataset.matrices import Column
from latentwire_batch.dataset.schema import FileSchema
from latentwire_batch.output.layout import CARD_MARK, DATA_NAME
from latentwire_batch.output.split_data import SPLITS, with_rows

_FRONT_MATTER = """\
---
pretty_name: {pretty_name}
tags:
- latentwire
- hidden-states
configs:
- config_name: default
  data_files:
{data_files}
{features}---
"""

_BODY = """
{mark}

# {title}

Plans and latents of {num_rows} tasks, made by latentwire {version} with the model {model}.

| Column | Meaning |
| --- | --- |
{columns}

{meaning} {kept}{cut}
{compressed}
{reading}
{same_rows}## How it was made

| Setting | Value |
| --- | --- |
{settings}

## Counts

| Count | Value |
| --- | --- |
{counts}
"""

_COMPRESSED_HEAD = """
## How latents are compressed

| Column | Compressor | Content hash | Parameters | Output |
| --- | --- | --- | --- | --- |"""


def build_card(manifest: Mapping[str, Any], schema: FileSchema) -> str:
    """Build the card of a finished output.

    Args:
        manifest: of the output.
        schema: of its files.
    """
    model, settings, counts = manifest["model"], manifest["settings"], manifest["counts"]
    name = str(model["model"])
    title = f"Latents of {name}"
    columns, splits = schema.columns, splits_in(manifest)
    body = _BODY.format(
        mark=CARD_MARK,
        title=_one_line(title),
        num_rows=counts["finished"],
        version=manifest["versions"]["latentwire"],
        model=code(name),
        columns=column_lines(columns, model["hidden_size"]),
        cut=_cut(counts, settings),
        meaning=_latent(manifest).meaning,
        kept=_kept(settings),
        compressed=compressed_section(manifest),
        reading=reading_text(schema.matrices, splits),
        same_rows=same_rows_text(splits),
        settings=table(_settings(model, settings)),
        counts=table(_counts(counts)),
    )
    return front_matter(title, schema, splits) + body


def splits_in(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the splits of an output that have files, in the order of the rows; empty: classic."""
    return tuple(with_rows(manifest.get(SPLITS) or {}))


def same_rows_text(splits: Sequence[str]) -> str:
    """Say which files hold the rows a second time."""
    return "" if splits else f"`{DATA_NAME}` holds the same rows.\n\n"


def front_matter(title: str, schema: FileSchema, splits: Sequence[str] = ()) -> str:
    """Build the part of a card that the hub reads.

    Args:
        title: of the dataset.
        schema: of its files.
        splits: of the hub layout; empty: the classic layout.
    """
    files = {split: f"{DATA_DIRECTORY}/{split}-*" for split in splits} or {"train": DATA_NAME}
    # JSON text is YAML text. Unquoted, some names would be numbers or truth values.
    return _FRONT_MATTER.format(
        pretty_name=json.dumps(title),
        data_files="\n".join(
            f"  - split: {json.dumps(split) if splits else split}\n"
            f"    path: {json.dumps(path) if splits else path}"
            for split, path in files.items()
        ),
        features="" if schema.features is None else _features(schema.features),
    )


def compressed_section(manifest: Mapping[str, Any]) -> str:
    """Say which compressor made which column; empty when none did.

    Args:
        manifest: of the output.
    """
    compressors = manifest.get("compressors") or {}
    if not compressors:
        return ""
    lines = [_COMPRESSED_HEAD]
    for column, said in compressors.items():
        parameters = json.dumps(said["parameters"])
        cells = (column, said["name"], said["content_hash"], parameters, said["output"])
        lines.append(f"| {' | '.join(code(str(cell)) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _latent(manifest: Mapping[str, Any]) -> LatentInfo:
    model = manifest["model"]
    return latent_info(model["model"], model["revision"]).model_copy(update=manifest["latent"])


def _features(features: Mapping[str, Any]) -> str:
    """Write the features; empty where one of them is no value or list: the hub infers them."""
    lines = ["dataset_info:", "  features:"]
    try:
        for name, feature in features.items():
            lines += [f"  - name: {_yaml(name)}", *_feature_lines(feature, "    ")]
    except (LookupError, TypeError):
        return ""
    return "\n".join(lines) + "\n"


def _yaml(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else json.dumps(name)


def _feature_lines(feature: Mapping[str, Any], indent: str) -> list[str]:
    """Write a feature in the card's notation, where a list's element needs no name."""
    if feature["_type"] == "Value":
        return [f"{indent}dtype: {feature['dtype']}"]
    if feature["_type"] not in ("Sequence", "List"):
        raise LookupError(feature["_type"])
    element = feature["feature"]
    if element["_type"] == "Value":
        return [f"{indent}sequence: {element['dtype']}"]
    return [f"{indent}sequence:", *_feature_lines(element, indent + "  ")]


def column_lines(columns: Iterable[Column], width: int) -> str:
    """Write the rows of a table of columns.

    Args:
        columns: of the files.
        width: of the full latents.
    """
    return "\n".join(
        f"| {code(column.name)} | {column.meaning.replace('{width}', str(width))} |"
        for column in columns
    )


def _kept(settings: Mapping[str, Any]) -> str:
    if settings.get("replace"):
        return "The dataset holds only what compressors made of the latents."
    k = settings["k"]
    return "All rows are kept." if k is None else f"At most the first {k} rows are kept."


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


def table(values: Mapping[str, Any]) -> str:
    """Write the rows of a table of two columns."""
    return "\n".join(f"| {name} | {code(json.dumps(v))} |" for name, v in values.items())


def code(text: str) -> str:
    """Quote a text so that nothing in it is markup or ends a table cell."""
    fence = "`"
    while fence in text:
        fence += "`"
    padding = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{padding}{_one_line(text)}{padding}{fence}".replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
