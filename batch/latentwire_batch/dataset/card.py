"""The dataset card: `README.md` beside the data, as the Hugging Face hub reads it.

Made from the manifest alone, so it too holds no host name, no address and no path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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
  - name: task
    dtype: string
  - name: task_id
    dtype: string
  - name: plan
    dtype: string
  - name: hidden_state
    sequence:
      sequence: float32
---
"""

_BODY = """
{mark}

# {title}

Plans and latents of {num_rows} tasks, made by latentwire {version} with the model {model}.

| Column | What |
| --- | --- |
| `task` | the task, in words |
| `task_id` | its id in the input, or its position there |
| `plan` | the text that the model generated |
| `hidden_state` | the latent: `[steps, {width}]` float32 |

Row t of a latent is the model's last hidden state, after the final norm, at the position whose
logits produced generated token t; row 0 is the last position of the prompt. {kept}

```python
from datasets import load_from_disk

dataset = load_from_disk("hf_dataset").with_format("numpy")
print(dataset[0]["task"], dataset[0]["hidden_state"].shape)
```

`{data_name}` holds the same rows.

## How it was made

| Setting | Value |
| --- | --- |
{settings}

## Counts

| What | Number |
| --- | --- |
{counts}
"""


def build_card(manifest: Mapping[str, Any]) -> str:
    """Write the card of a finished output.

    Args:
        manifest: of the output.
    """
    model, settings, counts = manifest["model"], manifest["settings"], manifest["counts"]
    name = str(model["model"])
    title = f"Latents of {name}"
    k = settings["k"]
    body = _BODY.format(
        mark=CARD_MARK,
        title=_one_line(title),
        num_rows=counts["finished"],
        version=manifest["versions"]["latentwire"],
        model=_code(name),
        width=model["hidden_size"],
        kept="All rows are kept." if k is None else f"At most the first {k} rows are kept.",
        data_name=DATA_NAME,
        settings=_table(_settings(model, settings)),
        counts=_table(_counts(counts)),
    )
    # JSON text is YAML text.
    return _FRONT_MATTER.format(pretty_name=json.dumps(title), data_name=DATA_NAME) + body


def _settings(model: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: value for name, value in model.items() if value is not None},
        **settings["prompt"],
        **settings["sampling"],
        "k": settings["k"],
        "seed": settings["seed"],
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
    """Quote a text so that nothing in it is markup, nor ends a table's cell."""
    fence = "`"
    while fence in text:
        fence += "`"
    padding = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{padding}{_one_line(text)}{padding}{fence}".replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
