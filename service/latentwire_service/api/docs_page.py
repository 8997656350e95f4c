"""`/docs`: the OpenAPI document as one page of HTML, without scripts and without other files.

A browser needs neither a network nor an API key to show it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

Json = Mapping[str, Any]

# The page loads nothing, whatever a browser finds in it.
CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; }
td, th { border-bottom: 1px solid var(--line); }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; background: var(--soft); }
pre { padding: .8rem; overflow-x: auto; }
"""
_KEYS = (
    "If the service has API keys, every path needs one, as <code>Authorization: Bearer KEY</code>, "
    "except <code>/health</code>, <code>/ready</code>, <code>/openapi.json</code> and this page."
)
_CALL = """curl http://127.0.0.1:8000/plan_latent?k=1 \\
  --header "Content-Type: application/json" \\
  --header "Authorization: Bearer KEY" \\
  --data '{"task": "Clean a kettle", "max_new_tokens": 64}'"""


def docs_page(document: Json) -> str:
    """Return the page.

    Args:
        document: the service's OpenAPI document.
    """
    info = document["info"]
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    links = "".join(
        f'<li><a href="#{_anchor(name)}"><code>{escape(name)}</code></a></li>'
        for name, _ in operations
    )
    body = "".join(_operation(name, operation, document) for name, operation in operations)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info.get('summary', ''))}</p><p>{_KEYS}</p><pre>{escape(_CALL)}</pre>"
        f'<ul>{links}</ul><p><a href="openapi.json">openapi.json</a> is this page for programs.</p>'
        f"{body}</body></html>"
    )


def _operation(name: str, operation: Json, document: Json) -> str:
    parts = [
        f'<h2 id="{_anchor(name)}"><code>{escape(name)}</code></h2>',
        f"<p>{escape(operation.get('description', ''))}</p>",
        _table(
            ("Parameter", "In", "Value", "Default", "Meaning"),
            [
                (p["name"], p["in"], *_field(p["schema"], p, document))
                for p in operation.get("parameters", ())
            ],
        ),
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        fields = _resolved(content["schema"], document).get("properties", {})
        rows = [(name, *_field(field, field, document)) for name, field in fields.items()]
        parts += [
            "<h3>Body</h3>",
            _table(("Field", "Value", "Default", "Meaning"), rows),
            *map(_example, content.get("examples", {}).values()),
        ]
    parts += ["<h3>Answers</h3>", _table(("Status", "Form", "Code"), list(_answers(operation)))]
    return "".join(parts)


def _answers(operation: Json) -> Iterator[Sequence[str]]:
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        codes = [name for form in content.values() for name in form.get("examples", {})]
        yield f"{status} {answer['description']}", ", ".join(content), ", ".join(codes)


def _field(schema: Json, described: Json, document: Json) -> tuple[str, str, str]:
    default = json.dumps(schema["default"], ensure_ascii=False) if "default" in schema else ""
    return _value(schema, document), default, described.get("description", "")


def _value(schema: Json, document: Json) -> str:
    """Name the values of a schema in a word or two."""
    schema = _resolved(schema, document)
    if "anyOf" in schema:
        kinds = [_value(choice, document) for choice in schema["anyOf"]]
        return " or ".join(kind for kind in kinds if kind != "null")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_value(schema.get('items', {}), document)}"
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            *(("minimum", "≥"), ("exclusiveMinimum", ">")),
            *(("maximum", "≤"), ("exclusiveMaximum", "<")),
        )
        if key in schema
    ]
    kind = str(schema.get("const", schema.get("type", "any")))
    return " ".join([kind, ", ".join(bounds)]).strip()


def _resolved(schema: Json, document: Json) -> Json:
    """Follow a reference within the document."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    resolved: Json = document["components"]["schemas"][reference.rpartition("/")[2]]
    return resolved


def _example(example: Json) -> str:
    shown = json.dumps(example["value"], indent=2, ensure_ascii=False)
    return f"<p>{escape(example.get('summary', ''))}</p><pre>{escape(shown)}</pre>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _row(cell: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"


def _anchor(name: str) -> str:
    return name.lower().replace(" /", "-")
