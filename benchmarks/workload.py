"""The input of every contender: a model, prompts of mixed length, a number of new tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentwire_service.engine.hf.loader import (
    LoadedModel,
    ModelFiles,
    load_model,
    pick_device,
    pick_dtype,
    read_files,
)
from latentwire_service.engine.hf.prompt_encoder import PromptEncoder
from latentwire_service.engine.prompt import Conversation, fill_template

TEMPLATE = "Please provide a general plan to solve this task.\nThe task is: {task}"
TASKS = Path(__file__).parent.parent / "examples" / "tasks.jsonl"
TOP_P = 0.9
CACHE_DIR = Path("~/.cache/latentwire")


@dataclass(frozen=True)
class Workload:
    """Prompts of one round.

    Attributes:
        tasks: the prompts as text, for contenders that use HTTP.
        prompts: the same prompts as token ids.
        new_tokens: tokens to generate for each prompt; an end-of-sequence token does not end it.
        concurrency: the largest number of requests in flight.
        max_rows: hidden rows to keep of each, for contenders that leave the choice; None: all.
    """

    tasks: list[str]
    prompts: list[list[int]]
    new_tokens: int
    concurrency: int
    max_rows: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens generated in one round."""
        return len(self.prompts) * self.new_tokens


@dataclass(frozen=True)
class Sample:
    """One contender's round.

    Attributes:
        num_tokens: tokens generated.
        seconds: from the first submission to the last token.
        ttft_s: median time to first token over requests; None if it cannot be measured.
        tpot_s: median time per output token after the first; None if it cannot be measured.
    """

    num_tokens: int
    seconds: float
    ttft_s: float | None = None
    tpot_s: float | None = None


def load(model: str, dtype: str, threads: int, device: str = "auto") -> LoadedModel:
    """Load the model as every in-process contender uses it."""
    torch.set_num_threads(threads)
    picked = pick_device(device)
    return load_model(
        model,
        device=picked,
        dtype=pick_dtype(dtype, picked),
        cache_dir=CACHE_DIR.expanduser(),
    )


def read(model: str) -> ModelFiles:
    """Read everything of the model but its weights."""
    return read_files(model, cache_dir=CACHE_DIR.expanduser())


def build_workload(
    tokenizer: Any,
    count: int,
    new_tokens: int,
    concurrency: int | None = None,
    max_rows: int | None = None,
) -> Workload:
    """Prompts from the example tasks, each with its number so that no two are the same.

    Args:
        tokenizer: of the model.
        count: of prompts.
        new_tokens: of each.
        concurrency: requests in flight at most; None: all of them.
        max_rows: as in `Workload`.
    """
    lines = TASKS.read_text(encoding="utf-8").splitlines()
    tasks = [json.loads(line)["task"] for line in lines if line]
    chosen = [f"{tasks[i % len(tasks)]} (list {i + 1})" for i in range(count)]
    encoder = PromptEncoder(tokenizer, ())
    prompts = [
        list(encoder.encode(Conversation.of_text(fill_template(TEMPLATE, task))).token_ids)
        for task in chosen
    ]
    return Workload(chosen, prompts, new_tokens, concurrency or count, max_rows)
