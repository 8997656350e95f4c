"""`collect_hidden_states.py`: a classic command line over the machinery of `latentwire collect`."""

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
    truth,
)
from latentwire_batch.errors import InputError, UsageError
from latentwire_batch.tasks.hub_dataset import HubDataset, saved_hub_dataset

_DESCRIPTION = """\
Plan every task of a dataset, and store the plans with the model's hidden states. Runs alone, or
under torchrun --nproc_per_node=N with one replica of the model per process."""


def main(args: list[str]) -> int:
    """Run the command; see `run_classic`."""
    return run_classic(_parser(), args, _translate)


def _parser() -> ClassicParser:
    parser = ClassicParser("collect_hidden_states", _DESCRIPTION)
    parser.add_model_settings("--model_name_or_path")
    _add_dataset(parser)
    parser.add_setting("output_dir", required=True)
    parser.add_task_settings()
    parser.add_setting("prompt_template")
    parser.add_setting(
        "chat_template",
        default="none",
        choices=("none", "qwen"),
        help="Chat markup. none: the bare prompt. qwen: ChatML with one user turn.",
    )
    for name in ("max_new_tokens", "temperature", "top_p", "top_k"):
        parser.add_setting(name)
    parser.add_setting("do_sample", type=truth, metavar="true|false")
    parser.add_setting("seed")
    parser.add_argument(
        "--flush_every",
        type=int,
        help="Accepted and ignored: every row is on disk within a second.",
    )
    parser.add_switch("--disable_tqdm", "Show no progress.")
    return parser


def _add_dataset(parser: ClassicParser) -> None:
    add = parser.add_argument
    add(
        "--dataset_path", type=Path, help="JSON, JSON Lines, Parquet or a load_from_disk directory."
    )
    add("--dataset_name", help="Dataset of the hub, instead of --dataset_path.")
    add("--dataset_split", help="Split of a dataset that has several. (default on the hub: train)")
    parser.add_switch(
        "--load_from_disk", "Require --dataset_path to be a load_from_disk directory."
    )
    add("--temp_dir", type=Path, help="Directory for the temporary copy of a hub dataset.")


def _translate(given: argparse.Namespace, opened: ExitStack) -> dict[str, Any]:
    check_task_place(given)
    return {"dataset": (str(_dataset(given, opened)),)}


def _dataset(given: argparse.Namespace, opened: ExitStack) -> Path:
    if given.dataset_path is None:
        if given.dataset_name is None:
            raise UsageError("--dataset_path: required")
        wanted = HubDataset(given.dataset_name, split=given.dataset_split or "train")
        try:
            return opened.enter_context(saved_hub_dataset(wanted, temp_dir=given.temp_dir))
        except InputError as error:
            raise InputError(f"--dataset_name: {error}") from error
    path: Path = given.dataset_path
    if given.load_from_disk and not path.is_dir():
        raise UsageError("--load_from_disk: --dataset_path is not a directory")
    return split_directory(path, given.dataset_split)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
