"""What a dataset of the stub's latents holds in each number format, and the card's own decoders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.number_formats import NumberFormat, decode_rows, encode_rows
from latentwire_batch.dispatch.seeds import row_seed
from support.batch.dataset_oracle import tasks_of
from support.batch.stub_answers import latent, num_tokens

Rows = npt.NDArray[np.float32]


def sent_latents(tasks: Path, hidden_size: int = 8) -> list[Rows]:
    """The latents that the stub sends for seed 7 and at most 12 tokens."""
    seeds = [row_seed(7, index) for index in range(len(tasks_of(tasks)))]
    return [
        latent(task, seed, num_tokens(task, seed, 12), hidden_size)
        for seed, (_, task) in zip(seeds, tasks_of(tasks), strict=True)
    ]


def kept_latents(tasks: Path, dtype: NumberFormat, hidden_size: int = 8) -> list[Rows]:
    """The same, as the number format keeps them."""
    return [decode_rows(encode_rows(rows, dtype)) for rows in sent_latents(tasks, hidden_size)]


def decoded_by_the_card(output: Path, row: dict[str, Any], column: str = "hidden_state") -> Any:
    """Decode a stored value as a reader of the card does, with the functions that it prints."""
    card = (output / "README.md").read_text(encoding="utf-8")
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", card, re.S) if "def decode" in block
    )
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    storage = manifest["storage"][column]
    decode = names[f"decode_{storage['dtype']}"]
    if f"{column}_scale" not in row:
        return decode(row[column])
    scales = row[f"{column}_scale"]
    return decode(row[column], scales, storage["width"], storage["rotation"])
