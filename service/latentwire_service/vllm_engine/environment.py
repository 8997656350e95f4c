"""Variables that vLLM reads when it is imported, here and in its own processes."""

from __future__ import annotations

import os
import uuid
from collections.abc import MutableMapping

# Read by `row_worker`: vLLM's processes end with this one.
SERVICE_PID = "LATENTWIRE_VLLM_SERVICE_PID"
# Read by `watchdog`, which finds vLLM's processes by it. Process ids are used again.
SERVICE_TOKEN = "LATENTWIRE_VLLM_SERVICE_TOKEN"


def prepare_environment(environ: MutableMapping[str, str], log_level: str) -> None:
    """Set what the service needs.

    Args:
        environ: of this process; vLLM's processes inherit it.
        log_level: of the service. Below `debug`, vLLM writes warnings and errors only.
    """
    # A fork of a process with threads may hang.
    environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    # Nobody has agreed to send anything.
    environ["VLLM_NO_USAGE_STATS"] = "1"
    environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"
    level = {"debug": "DEBUG", "error": "ERROR"}.get(log_level, "WARNING")
    environ.setdefault("VLLM_LOGGING_LEVEL", level)
    environ[SERVICE_PID] = str(os.getpid())
    environ[SERVICE_TOKEN] = uuid.uuid4().hex
    # vLLM names its processes. The new name would take the place of the variables, among them the
    # token, where the system shows them.
    environ["SPT_NOENV"] = "1"
