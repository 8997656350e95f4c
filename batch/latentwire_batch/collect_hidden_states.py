"""`collect_hidden_states.py`: a classic command line over the machinery of `latentwire collect`."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from latentwire.constants import DEFAULT_MAX_NEW_TOKENS, DEFAULT_PROMPT_TEMPLATE
from latentwire_batch.classic import add_switch, run_classic, split_directory, task_fields, truth
from latentwire_batch.errors import UsageError
from latentwire_batch.flags import Parser
from latentwire_batch.tasks.hub_dataset import saved_hub_dataset

_DESCRIPTION = """\
Plan every task of a dataset; store the plans with the model's hidden states. Runs alone, or under
torchrun --nproc_per_node=N with one replica of the model per process."""


def main(args: list[str]) -> int:
    """Run the command; see `run_classic`."""
    return run_classic(_parser(), args, _translate)


def _parser() -> Parser:
    parser = Parser(prog="collect_hidden_states", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="hub id, local directory or .gguf file")
    add("--dataset_path", type=Path, help="JSON, JSON Lines, Parquet or a load_from_disk directory")
    add("--dataset_name", help="a dataset of the hub, where --dataset_path is not given")
    add("--dataset_split", help="split of a dataset that has several; of the hub's: train")
    add_switch(parser, "--load_from_disk", "insist that --dataset_path is such a directory")
    add("--output_dir", required=True, type=Path, help="where the dataset of latents is made")
    add("--task_field", help='field with the task; "" with --conversations_index (task)')
    add("--conversations_index", type=int, help='take conversations[N]["value"] as the task')
    add("--id_field", default="id", help="field with the id; else the row's index (id)")
    add("--prompt_template", default=DEFAULT_PROMPT_TEMPLATE, help="{task} becomes the task")
    add("--chat_template", choices=("none", "qwen"), default="none", help="chat markup (none)")
    add("--max_new_tokens", type=int, default=DEFAULT_MAX_NEW_TOKENS, help="most tokens (512)")
    add("--temperature", type=float, default=1.0, help="0 means greedy (1.0)")
    add("--top_p", type=float, default=0.9, help="nucleus mass (0.9)")
    add("--top_k", type=int, default=0, help="most tokens kept; 0 keeps all (0)")
    add("--do_sample", type=truth, default=True, metavar="true|false", help="else greedy (true)")
    add("--torch_dtype", choices=("bf16", "fp16", "fp32"), help="bf16 on a GPU, fp32 on the CPU")
    add("--seed", type=int, help="of the dataset; drawn and recorded where absent")
    add_switch(parser, "--trust_remote_code", "run code that comes with a hub model")
    add("--temp_dir", type=Path, help="where a dataset of the hub is unpacked")
    add("--flush_every", type=int, help="not needed: rows are on the disk after a second")
    add_switch(parser, "--disable_tqdm", "show no progress")
    return parser


def _translate(given: argparse.Namespace, opened: ExitStack) -> dict[str, Any]:
    return {
        "model": given.model_name_or_path,
        "dataset": _dataset(given, opened),
        "output_dir": given.output_dir,
        **task_fields(given.task_field, given.conversations_index),
        "id_field": given.id_field,
        "prompt_template": given.prompt_template,
        "chat_template": given.chat_template,
        "max_new_tokens": given.max_new_tokens,
        "temperature": given.temperature,
        "top_p": given.top_p,
        "top_k": given.top_k,
        "do_sample": given.do_sample,
        "dtype": given.torch_dtype,
        "seed": given.seed,
        "trust_remote_code": given.trust_remote_code,
    }


def _dataset(given: argparse.Namespace, opened: ExitStack) -> Path:
    if given.dataset_path is None:
        if given.dataset_name is None:
            raise UsageError("--dataset_path: required")
        split = given.dataset_split or "train"
        return opened.enter_context(saved_hub_dataset(given.dataset_name, split, given.temp_dir))
    path: Path = given.dataset_path
    if given.load_from_disk and not path.is_dir():
        raise UsageError("--load_from_disk: --dataset_path is not a directory")
    return split_directory(path, given.dataset_split)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
