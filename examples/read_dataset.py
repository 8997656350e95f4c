"""Read both forms of a dataset of latents: `python examples/read_dataset.py OUTPUT_DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import load_from_disk
from rich.console import Console
from rich.table import Table

_SHOWN_CHARS = 40


def main(output_dir: Path) -> None:
    """Check that both forms hold the same rows, and show them."""
    dataset = load_from_disk(str(output_dir / "hf_dataset"))
    rows = pq.read_table(output_dir / "data.parquet")
    if not rows.cast(dataset.data.schema).equals(dataset.data.table):
        sys.exit("data.parquet and hf_dataset hold different rows")

    table = Table("task_id", "hidden_state", "plan", title=f"{len(dataset)} rows")
    for row in dataset.with_format("numpy"):
        # The latent of one row: [L, H] float32; its row t predicted token t.
        latent = np.stack(row["hidden_state"]) if len(row["hidden_state"]) else np.empty((0, 0))
        plan = " ".join(str(row["plan"]).split())[:_SHOWN_CHARS]
        table.add_row(str(row["task_id"]), str(list(latent.shape)), plan)
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "hf_dataset").is_dir():
        sys.exit(
            "usage: python examples/read_dataset.py OUTPUT_DIR, a directory of latentwire collect"
        )
    main(Path(sys.argv[1]))
