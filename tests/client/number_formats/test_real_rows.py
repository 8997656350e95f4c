"""Number formats on hidden rows of the embedded model, which have outlying features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire.number_formats import NUMBER_FORMATS, NumberFormat, decode_rows, encode_rows
from latentwire_service.engine.hf.loader import load_model

pytestmark = [pytest.mark.slow, pytest.mark.demo_model]

TEXTS = [
    "First, find the mug on the counter. Then clean it in the sink and put it on the table.",
    "To solve the problem, add the number of apples to the number of pears, and halve the sum.",
    "1. Open the fridge.\n2. Take the tomato.\n3. Slice it with the knife.\n4. Close the fridge.",
]


@pytest.fixture(scope="module")
def rows() -> Any:
    """`[n, 576]` float32: what a latent holds, after the final norm."""
    cache = Path.home() / ".cache/latentwire"
    loaded = load_model("demo", device=torch.device("cpu"), dtype=torch.float32, cache_dir=cache)
    base: Any = loaded.model.base_model
    with torch.inference_mode():
        states = [
            base(torch.tensor([loaded.tokenizer.encode(text)])).last_hidden_state[0]
            for text in TEXTS
        ]
    return torch.cat(states).float().numpy()


def loss(rows: Any, format: NumberFormat, rotation: int | None = 0) -> Any:
    decoded = decode_rows(encode_rows(rows, format, rotation=rotation))
    return np.linalg.norm(decoded - rows, axis=1) / np.linalg.norm(rows, axis=1)


@pytest.mark.parametrize("format", NUMBER_FORMATS)
def test_losses_are_those_of_the_documents_table(rows: Any, format: NumberFormat) -> None:
    largest = {"float32": 0, "float16": 5e-4, "bfloat16": 4e-3, "int8": 0.015, "int4": 0.25}
    assert len(rows) > 50
    assert loss(rows, format).max() <= largest[format]


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_the_bound_holds(rows: Any, format: NumberFormat) -> None:
    for rotation in (0, None):
        encoded = encode_rows(rows, format, rotation=rotation)
        assert encoded.scales is not None
        lengths = np.linalg.norm(rows, axis=1)
        bounds = encoded.scales / 2 * np.sqrt(576) + 2.0**-20 * lengths
        assert (np.linalg.norm(decode_rows(encoded) - rows, axis=1) <= bounds).all()


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_rotation_loses_less_on_every_row_but_few(rows: Any, format: NumberFormat) -> None:
    rotated, plain = loss(rows, format), loss(rows, format, rotation=None)
    assert np.median(rotated) < 0.5 * np.median(plain)
    assert (rotated < plain).mean() > 0.95
