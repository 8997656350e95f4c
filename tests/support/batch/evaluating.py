"""Datasets and services for `latentwire evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from support.bridge_folders import SENDER_WIDTH

DECLARED = {
    "model": {"model": "sender", "revision": None},
    "latent": {"layer": "last", "normed": True, "alignment": "predicts"},
}
BEFORE, AFTER = "Repeat: ", "."


@dataclass(frozen=True)
class Compared:
    status: int
    out: str
    err: str
    report: dict[str, Any]

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.report["rows"] if row["name"] == name)


Compare = Callable[..., Compared]


def plans(count: int) -> list[str]:
    return [f"Go to {'far ' * (i % 3)}place {i}." for i in range(count)]


def latents(count: int, width: int = SENDER_WIDTH) -> list[npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2 + i % 4, width), np.float32) for i in range(count)]


def write_dataset(
    path: Path,
    rows: Sequence[npt.NDArray[np.float32]],
    declared: dict[str, Any] | None = DECLARED,
    **columns: list[Any],
) -> Path:
    """Write a dataset as `collect` does."""
    count = len(rows)
    values: dict[str, list[Any]] = {
        "task": [f"Task {i}?" for i in range(count)],
        "task_id": [f"t{i}" for i in range(count)],
        "plan": plans(count),
    }
    table = pa.table(
        {
            **(values | columns),
            "hidden_state": pa.array(
                [matrix.tolist() for matrix in rows], pa.list_(pa.list_(pa.float32()))
            ),
        }
    )
    if declared is not None:
        table = table.replace_schema_metadata({"latentwire": json.dumps(declared)})
    pq.write_table(table, path)
    return path


def learned(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write principal components; another seed gives other ones."""
    manifest: dict[str, Any] = {
        "format": "latentwire-compressor",
        "version": 1,
        "kind": "pca",
        "name": "pca",
        "source": {"hidden_size": SENDER_WIDTH, "model": "sender"},
        "k": 4,
        "dim": 3,
        "config": {"rows": "mean-pool"},
        "output": "coefficients",
    }
    folder.mkdir()
    (folder / "compressor.json").write_text(json.dumps(manifest | changes), encoding="utf-8")
    draw = np.random.default_rng(seed)
    dim = changes.get("dim", 3)
    components = np.linalg.qr(draw.standard_normal((max(dim, SENDER_WIDTH), SENDER_WIDTH)))[0]
    components = components[:dim] if dim > SENDER_WIDTH else components[:, :dim].T
    tensors = {"mean": np.zeros(SENDER_WIDTH, np.float32), "components": components}
    save_file(
        {name: np.ascontiguousarray(each, np.float32) for name, each in tensors.items()},
        folder / "compressor.safetensors",
    )
    return folder
