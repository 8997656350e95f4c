"""The processes of a vLLM that runs; each may end while a test looks at it."""

from __future__ import annotations

from typing import Any


def command_of(process: Any) -> str:
    """The command of a process of `psutil`'s; empty when it has ended."""
    import psutil

    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def runs(process: Any) -> bool:
    """Whether a process of `psutil`'s has not ended."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
