"""`compressed_latent_collect.py`: a classic command line that keeps the first steps of latents."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from latentwire_batch.classic import FLAGS, add_switch, run_classic, split_directory, task_fields
from latentwire_batch.flags import Parser

_DESCRIPTION = """\
Plan every task of a dataset; store the plans with the first hidden states of each. Runs alone, or
under torchrun --nproc_per_node=N with one replica of the model per process."""


def main(args: list[str]) -> int:
    """Run the command; see `run_classic`."""
    return run_classic(_parser(), args, _translate, {**FLAGS, "model": "--model_path"})


def _parser() -> Parser:
    parser = Parser(prog="compressed_latent_collect", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("--model_path", required=True, help="hub id, local directory or .gguf file")
    add(
        "--dataset_path",
        required=True,
        type=Path,
        help="JSON, JSON Lines, Parquet or a load_from_disk directory",
    )
    add("--output_dir", required=True, type=Path, help="where the dataset of latents is made")
    add("--temperature", type=float, default=1.2, help="0 means greedy (1.2)")
    add("--max_new_tokens", type=int, default=1500, help="most tokens to generate (1500)")
    add("--c", type=int, help="number of hidden steps to keep (all)")
    add("--task_field", help='field with the task; "" with --conversations_index (task)')
    add("--conversations_index", type=int, help='take conversations[N]["value"] as the task')
    add("--id_field", default="id", help="field with the id; else the row's index (id)")
    add("--dataset_split", help="split of a directory that holds several")
    add("--torch_dtype", choices=("bf16", "fp16", "fp32"), help="bf16 on a GPU, fp32 on the CPU")
    add("--seed", type=int, help="of the dataset; drawn and recorded where absent")
    add_switch(parser, "--trust_remote_code", "run code that comes with a hub model")
    add_switch(parser, "--disable_tqdm", "show no progress")
    return parser


def _translate(given: argparse.Namespace, opened: ExitStack) -> dict[str, Any]:
    del opened  # Nothing has to be unpacked first.
    return {
        "model": given.model_path,
        "dataset": split_directory(given.dataset_path, given.dataset_split),
        "output_dir": given.output_dir,
        **task_fields(given.task_field, given.conversations_index),
        "id_field": given.id_field,
        "chat_template": "none",
        "max_new_tokens": given.max_new_tokens,
        "temperature": given.temperature,
        "k": given.c,
        "dtype": given.torch_dtype,
        "seed": given.seed,
        "trust_remote_code": given.trust_remote_code,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
