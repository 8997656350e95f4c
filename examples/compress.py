"""Add compressed latents to a dataset, by hand and with one command: the results are equal.

`python examples/compress.py OUTPUT_DIR NEW_DIR`
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk

K = 8


def mean_pool(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the means of K segments of a latent [L, H]: [min(K, L), H] float32."""
    latent = np.array(row["hidden_state"], dtype=np.float64)
    length = len(latent)
    count = min(K, length)
    starts = [i * length // count for i in range(count)]
    ends = [(i + 1) * length // count for i in range(count)]
    means = [latent[start:end].mean(axis=0) for start, end in zip(starts, ends, strict=True)]
    return {"hidden_state_comp": np.array(means, dtype=np.float32)}


def compress_by_hand(output_dir: Path, new_dir: Path) -> Dataset:
    """The recipe: a function of your own, `map`, and a new dataset."""
    dataset = load_from_disk(str(output_dir / "hf_dataset"))
    dataset = dataset.map(mean_pool)
    dataset.save_to_disk(str(new_dir))
    return load_from_disk(str(new_dir))


def compress_with_latentwire(output_dir: Path, new_dir: Path) -> Dataset:
    """The same as `latentwire compress OUTPUT_DIR --compressor mean-pool --k 8 -o NEW_DIR`."""
    flags = ["--compressor", "mean-pool", "--k", str(K), "-o", str(new_dir)]
    command = [sys.executable, "-m", "latentwire", "compress", str(output_dir)]
    subprocess.run([*command, *flags], check=True)
    return load_from_disk(str(new_dir / "hf_dataset"))


def main(output_dir: Path, new_dir: Path) -> None:
    """Compress in both ways, and compare all rows."""
    by_hand = compress_by_hand(output_dir, new_dir / "by-hand")
    by_command = compress_with_latentwire(output_dir, new_dir / "by-command")
    if by_hand.num_rows != by_command.num_rows:
        sys.exit("the datasets have different numbers of rows")
    for mine, theirs in zip(by_hand, by_command, strict=True):
        np.testing.assert_allclose(
            np.array(theirs["hidden_state_comp"]), np.array(mine["hidden_state_comp"]), atol=1e-6
        )
    latents = sum(len(row) for row in by_command["hidden_state"])
    compressed = sum(len(row) for row in by_command["hidden_state_comp"])
    sys.stdout.write(f"equal: {by_hand.num_rows} rows, {latents} hidden rows as {compressed}\n")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not Path(sys.argv[1], "hf_dataset").is_dir():
        sys.exit(
            "usage: python examples/compress.py OUTPUT_DIR NEW_DIR; OUTPUT_DIR is a directory of "
            "latentwire collect"
        )
    main(Path(sys.argv[1]), Path(sys.argv[2]))
