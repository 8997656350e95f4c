"""Answers of a stub replica: a pure function of task, seed and position, and of its behaviour."""

from __future__ import annotations

import threading
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def num_tokens(task: str, seed: int, max_new_tokens: int) -> int:
    """Tokens the stub generates: 1..max_new_tokens."""
    return 1 + zlib.crc32(f"{task}/{seed}".encode()) % max_new_tokens


def latent(task: str, seed: int, num_steps: int, hidden_size: int) -> np.ndarray:
    """`[num_steps, hidden_size]` float32, a function of task, seed and position alone."""
    base = np.float32(zlib.crc32(f"{seed}:{task}".encode()) % 4096)
    steps = np.arange(num_steps, dtype=np.float32)[:, None]
    columns = np.arange(hidden_size, dtype=np.float32)[None, :] / np.float32(1024)
    return base + steps - columns


def plan_text(task: str, seed: int) -> str:
    return f"Plan {zlib.crc32(f'{task}|{seed}'.encode())}: {task}"


@dataclass
class Behaviour:
    """Behaviour of a stub; tests change it while the stub runs.

    Attributes:
        faults: statuses of the next answers to plan requests, whatever the task.
        task_faults: statuses by task, used from the left; then the task gets a plan.
        is_ready: the state that `/ready` reports.
        info_faults: statuses of the next answers to `/info`; 0 drops the connection.
        is_dead: connections are dropped without an answer.
        die_after: drop every connection after this many plans.
        stop_after: stop the process, with its connections open, after this many plans.
        gate: plan requests wait for it.
        nan_tasks: tasks whose latent has a NaN.
        speaks_json_only: answer with JSON, whatever `Accept` lists.
        killers: tasks that end the replica with all that it has in flight.
        restart_s: seconds from such an end until it is back; None: it stays away.
        tells_why: such an end is told by an answer, like that of a service whose engine failed.
        finish_reason: of every answer.
        refused_field: requests with this field are refused, as by a service that lacks it.
        states_uptime: whether `/info` says how long it is up, unlike that of earlier services.
    """

    model: str = "stub"
    hidden_size: int = 8
    dtype: str = "float32"
    steps: int | None = None
    max_slots: int = 4
    delay_s: float = 0.0
    api_key: str | None = None
    faults: deque[int] = field(default_factory=deque)
    task_faults: dict[str, list[int]] = field(default_factory=dict)
    is_ready: bool = True
    info_faults: deque[int] = field(default_factory=deque)
    is_dead: bool = False
    die_after: int | None = None
    exit_on_death: bool = False
    stop_after: int | None = None
    gate: threading.Event | None = None
    nan_tasks: set[str] = field(default_factory=set)
    speaks_json_only: bool = False
    killers: frozenset[str] = frozenset()
    restart_s: float | None = 0.0
    tells_why: bool = False
    finish_reason: str = "stop"
    refused_field: str | None = None
    states_uptime: bool = True


def info(behaviour: Behaviour) -> dict[str, object]:
    return {
        "model": behaviour.model,
        "revision": None,
        "hidden_size": behaviour.hidden_size,
        "vocab_size": 100,
        "dtype": behaviour.dtype,
        "device": "cpu",
        "limits": {
            "max_slots": behaviour.max_slots,
            "max_model_len": 4096,
            "max_queue": 64,
            "max_body_bytes": 1 << 20,
        },
        "version": "0",
        "compressors": [],
    }


def answer_of(
    behaviour: Behaviour, body: dict[str, object], k: int | None
) -> tuple[dict[str, Any], np.ndarray]:
    """The answer's fields, without the latent's data, and the latent."""
    task, seed = str(body["task"]), int(str(body["seed"]))
    count = behaviour.steps or num_tokens(task, seed, int(str(body["max_new_tokens"])))
    rows = count if k is None else min(k, count)
    matrix = latent(task, seed, rows, behaviour.hidden_size)
    if task in behaviour.nan_tasks:
        matrix[0, 0] = np.nan
    answer = {
        "id": f"plan-{zlib.crc32(task.encode())}",
        "model": behaviour.model,
        "task": task,
        "task_id": body.get("task_id"),
        "plan": plan_text(task, seed),
        "k": k,
        "hidden_state": {
            "data": "",
            "dtype": "float32",
            "byteorder": "little",
            "shape": [rows, behaviour.hidden_size],
        },
        "latent": {
            "layer": "last",
            "normed": True,
            "alignment": "predicts",
            "model": behaviour.model,
            "revision": None,
        },
        "token_ids": list(range(count)),
        "finish_reason": behaviour.finish_reason,
        "seed": seed,
        "usage": {"prompt_tokens": 5, "completion_tokens": count, "latent_rows": rows},
        "timings": {"queue_ms": 0.0, "prefill_ms": 0.0, "decode_ms": 0.0},
    }
    return answer, matrix
