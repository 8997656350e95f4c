"""Datasets of random latents with structure, for fits of compressors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

WIDTH = 24
_RANK = 6


def latent(draw: np.random.Generator, num_rows: int, width: int = WIDTH) -> npt.NDArray[np.float32]:
    """Rows near a few directions, which drift over the steps, around a mean that is not zero."""
    fixed = np.random.default_rng(99)
    directions = fixed.standard_normal((_RANK, width)) * np.arange(_RANK, 0, -1)[:, None]
    start = draw.standard_normal((1, _RANK))
    drift = np.cumsum(draw.standard_normal((num_rows, _RANK)) * 0.3, axis=0)
    noise = draw.standard_normal((num_rows, width)) * 0.05
    rows: npt.NDArray[np.float32] = (
        np.tanh(start + drift) @ directions + 3 * fixed.standard_normal(width) + noise
    ).astype(np.float32)
    return rows


def write_latents(
    path: Path,
    latents: Sequence[npt.NDArray[np.float32]],
    plans: Sequence[str] | None = None,
    model: str | None = "tiny",
) -> Path:
    """Write `data.parquet` as `collect` does, with these latents."""
    table = pa.table(
        {
            "task_id": pa.array([str(index) for index in range(len(latents))]),
            "plan": pa.array(plans or [f"plan {index}" for index in range(len(latents))]),
            "hidden_state": _lists(latents),
        }
    )
    declared = {"model": {"model": model, "revision": None}, "latent": {"layer": "last"}}
    table = table.replace_schema_metadata({"latentwire": json.dumps(declared)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=8)
    return path


def _lists(latents: Sequence[npt.NDArray[np.float32]]) -> pa.ListArray:
    """Latents as lists of lists, without a Python object per number."""
    values = np.concatenate([rows.ravel() for rows in latents])
    widths = [rows.shape[1] for rows in latents for _ in rows]
    rows = pa.ListArray.from_arrays(_offsets(widths), pa.array(values))
    return pa.ListArray.from_arrays(_offsets([len(rows) for rows in latents]), rows)


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def random_latents(num_latents: int, seed: int = 0) -> list[npt.NDArray[np.float32]]:
    """Latents of 1 to 30 rows."""
    draw = np.random.default_rng(seed)
    return [latent(draw, int(draw.integers(1, 31))) for _ in range(num_latents)]
