"""`compressed_latent_collect.py`: a classic command line that truncates latents to `--c` rows."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from latentwire_batch.classic import (
    ClassicParser,
    check_task_place,
    run_classic,
    split_directory,
)

_DESCRIPTION = """\
Plan every task of a dataset, and store the plans with the first hidden rows of each. Runs alone, or
under torchrun --nproc_per_node=N with one replica of the model per process."""


def main(args: list[str]) -> int:
    """Run the command; see `run_classic`."""
    return run_classic(_parser(), args, _translate)


def _parser() -> ClassicParser:
    parser = ClassicParser("compressed_latent_collect", _DESCRIPTION)
    parser.add_model_settings("--model_path")
    parser.add_argument(
        "--dataset_path",
        required=True,
        type=Path,
        help="JSON, JSON Lines, Parquet or a load_from_disk directory.",
    )
    parser.add_argument("--dataset_split", help="Split of a directory that holds several.")
    parser.add_setting("output_dir", required=True)
    parser.add_setting("temperature", default=1.2)
    parser.add_setting("max_new_tokens", default=1500)
    parser.add_setting("k", "--c")
    parser.add_task_settings()
    parser.add_setting("seed")
    parser.add_switch("--disable_tqdm", "Show no progress.")
    return parser


def _translate(given: argparse.Namespace, _opened: ExitStack) -> dict[str, Any]:
    check_task_place(given)
    return {
        "dataset": (str(split_directory(given.dataset_path, given.dataset_split)),),
        "chat_template": "none",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
