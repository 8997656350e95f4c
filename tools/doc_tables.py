"""The tables of the docs that restate code. The code is their source, so they cannot drift.

`make docs` writes each table between its `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from latentwire.conversation import Message
from latentwire.plan_command import PlanSettings
from latentwire.protocol import PlanLatentQuery, PlanLatentRequest
from latentwire_batch.compression.command_settings import CompressSettings
from latentwire_batch.config import CollectSettings
from latentwire_batch.evaluation.settings import EvaluateSettings
from latentwire_batch.inspection.command import InspectSettings
from latentwire_batch.locations import RemotePath
from latentwire_batch.shards.merge_settings import MergeSettings
from latentwire_service.bridges.fitting.settings import FitSettings
from latentwire_service.compressors.fitting.settings import CompressorSettings
from latentwire_service.settings import Settings
from latentwire_service.telemetry.metrics import Metrics

DOCS = Path(__file__).parents[1] / "docs"

_VALUES: dict[object, str] = {
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    RemotePath: "URL",
    SecretStr: "text",
    Message: "message",
}
# Fields that are set by position, not by a flag.
_ARGUMENTS = {"task", "path"}
_MARKED = r"(?<=<!-- begin {name} -->\n)(.*?)(?=<!-- end {name} -->)"


def rewrite(page: str) -> str:
    """Return a page's text with the current content in every marked table."""
    for name, make in TABLES.items():
        # A function, because a replacement string would read the table's backslashes as escapes.
        page = re.sub(_MARKED.format(name=name), partial(_constant, make()), page, flags=re.DOTALL)
    return page


def _constant(text: str, _: re.Match[str]) -> str:
    return text


def _settings_table(model: type[BaseModel], *arguments: str) -> str:
    rows = [
        (
            _flag(name, field),
            # A switch takes no value.
            _value(field).removeprefix("true or false"),
            _default(field),
            field.description or "",
        )
        for name, field in model.model_fields.items()
        if name not in _ARGUMENTS.union(arguments)
    ]
    return _table(("Flag", "Value", "Default", "Meaning"), rows)


def _fields_table() -> str:
    # `k` first: it is the one that is in the URL in both forms.
    fields = dict(PlanLatentQuery.model_fields)
    # A body alone may have messages.
    messages = {"messages": PlanLatentRequest.model_fields["messages"]}
    fields = {"k": fields.pop("k"), "task": fields.pop("task"), **messages, **fields}
    rows = [
        (f"`{name}`", _value(field), _default(field), field.description or "")
        for name, field in fields.items()
    ]
    return _table(("Field", "Value", "Default", "Meaning"), rows)


def _metrics_table() -> str:
    shown = Metrics().render().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", shown, re.MULTILINE))
    rows = [
        (f"`{name}`", kinds[name], meaning)
        for name, meaning in re.findall(r"^# HELP (\S+) (.+)$", shown, re.MULTILINE)
        if name.startswith("latentwire_") and not name.endswith("_created")
    ]
    return _table(("Metric", "Kind", "Meaning"), rows)


def _flag(name: str, field: FieldInfo) -> str:
    flag = _kebab(name)
    if field.annotation is bool:
        return f"`{flag}` / `--no-{flag[2:]}`"
    return f"`{flag}`"


def _kebab(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value(field: FieldInfo) -> str:
    return " or ".join(_kinds(field.annotation))


def _kinds(annotation: Any) -> Iterator[str]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for choice in get_args(annotation):
            yield from _kinds(choice)
    elif origin is Literal:
        yield ", ".join(f"`{choice}`" for choice in get_args(annotation))
    elif origin in (tuple, list):
        (kind,) = {choice for item in get_args(annotation)[:1] for choice in _kinds(item)}
        yield f"{kind}, repeatable"
    elif origin is dict:
        yield "object"
    elif annotation is bool:
        yield "true or false"
    elif annotation is not type(None):
        yield _VALUES[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default in (None, (), []):
        return ""
    if isinstance(field.default, bool):
        return "`true`" if field.default else "`false`"
    return _code(field.default)


def _code(value: object) -> str:
    return "`" + str(value).replace("\n", "\\n") + "`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


TABLES: dict[str, Callable[[], str]] = {
    "serve": lambda: _settings_table(Settings),
    "plan": lambda: _settings_table(PlanSettings),
    "collect": lambda: _settings_table(CollectSettings),
    "inspect": lambda: _settings_table(InspectSettings),
    "fit-bridge": lambda: _settings_table(FitSettings, "dataset"),
    "fit-compressor": lambda: _settings_table(CompressorSettings, "dataset"),
    "merge": lambda: _settings_table(MergeSettings, "shards"),
    "compress": lambda: _settings_table(CompressSettings, "dataset"),
    "evaluate": lambda: _settings_table(EvaluateSettings, "dataset"),
    "fields": _fields_table,
    "metrics": _metrics_table,
}


if __name__ == "__main__":
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
