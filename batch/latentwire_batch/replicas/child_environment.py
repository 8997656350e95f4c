"""Which environment variables own replicas see. Pure.

An own replica is a private service of one collection: it listens on the loopback interface, for one
caller, and writes its log to a pipe. The environment may hold settings of another, public service
on the same machine. So `LATENTWIRE_*` variables reach an own replica only if they say how a model
is computed. The collection's flags, or `LATENTWIRE_COLLECT_*`, decide the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

from latentwire_batch.ranks.gpus import restrict

PASSED_ON = frozenset(
    f"LATENTWIRE_{name}"
    for name in (
        *("DEVICE", "DTYPE", "THREADS", "MAX_SLOTS", "MAX_MODEL_LEN", "MEMORY_FRACTION"),
        *("PREFILL_CHUNK", "COMPILE", "CACHE_DIR", "IGNORE_CHAT_TEMPLATE"),
    )
)
_PREFIX = "LATENTWIRE_"
# Set by the launcher of several processes: a child is none of those, and its flags say how many
# threads it has.
_OF_THE_LAUNCHER = frozenset(
    {
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    }
)


def child_environment(environ: Mapping[str, str], gpu: str | None) -> dict[str, str]:
    """Return the environment of an own replica.

    Args:
        environ: of this process.
        gpu: the one GPU that it sees; None leaves the variables of the GPUs as they are.
    """
    child = {name: value for name, value in environ.items() if _reaches_children(name)}
    return child if gpu is None else restrict(child, gpu)


def _reaches_children(name: str) -> bool:
    # The service reads its variables without regard to case.
    if name.upper().startswith(_PREFIX):
        return name.upper() in PASSED_ON
    return name not in _OF_THE_LAUNCHER
