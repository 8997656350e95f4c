"""Which tasks of a dataset are held out of training: decided by each task's id, without a list.

Fitting and evaluation share this rule, so that an evaluation never scores a task that was trained
on. This module must not know HTTP, torch or FastAPI.
"""

from __future__ import annotations

import hashlib


def is_held_out(task_id: str, seed: int, fraction: float) -> bool:
    """Say whether a task is held out.

    Args:
        task_id: id of the task.
        seed: another seed holds out other tasks.
        fraction: of the tasks, from 0 to 1.
    """
    digest = hashlib.blake2b(f"{seed}:{task_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
