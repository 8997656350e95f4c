"""Which child processes serve the model on this machine: by GPU, group of GPUs, or on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentwire_batch.config import OwnReplicaFields
from latentwire_batch.errors import UsageError
from latentwire_batch.ranks.gpus import are_own, visible_gpus
from latentwire_batch.ranks.rank import ALONE, Rank

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class LocalReplicaSpec:
    """How one child is started.

    Attributes:
        index: its position, also in notices.
        gpu: the GPUs that it sees, one or several with commas; None leaves the environment as it
            is.
        command: module to run and its arguments, all but the socket to listen on.
    """

    index: int
    gpu: str | None
    command: tuple[str, ...]


def plan_local_replicas(
    settings: OwnReplicaFields,
    environ: Mapping[str, str],
    rank: Rank = ALONE,
    flags: Sequence[str] = (),
) -> list[LocalReplicaSpec]:
    """Decide which children to start.

    Args:
        settings: of the run.
        environ: of this process.
        rank: of this process; one of several gets one GPU, or its share of the CPU's threads.
        flags: of `latentwire serve`, after those of the settings.

    Raises:
        UsageError: when there are fewer GPUs than processes on this machine.
    """
    wants_gpus = settings.device in (None, "auto", "cuda")
    gpus = visible_gpus(environ) if wants_gpus else []
    if rank.count > 1 and gpus:
        gpus = _gpus_of_rank(gpus, environ, rank)
    elif rank.count > 1 and settings.threads is None and settings.engine != "vllm":
        num_threads = max(1, _num_cores() // rank.local_count)
        settings = settings.model_copy(update={"threads": num_threads})
    command = (*serve_command(settings), *flags)
    shares: list[str] | list[None] = _shares(gpus, gpus_per_replica(settings)) if gpus else [None]
    return [LocalReplicaSpec(index, gpu, command) for index, gpu in enumerate(shares)]


def gpus_per_replica(settings: OwnReplicaFields) -> int:
    """Return how many GPUs share one model."""
    return (settings.tensor_parallel_size or 1) * (settings.pipeline_parallel_size or 1)


def _shares(gpus: Sequence[str], size: int) -> list[str]:
    """Divide GPUs among replicas that need `size` each; a rest stays unused.

    Raises:
        UsageError: when they are too few for one replica.
    """
    if len(gpus) < size:
        raise UsageError(
            f"one replica needs {size} GPUs, and {len(gpus)} can be used: lower "
            "--tensor-parallel-size or --pipeline-parallel-size"
        )
    starts = range(0, len(gpus) - size + 1, size)
    return [",".join(gpus[start : start + size]) for start in starts]


def _gpus_of_rank(gpus: list[str], environ: Mapping[str, str], rank: Rank) -> list[str]:
    """Return the GPUs of one process among several on this machine.

    Raises:
        UsageError: when the processes would have to share them.
    """
    if are_own(gpus, environ):
        return gpus
    # Without LOCAL_WORLD_SIZE, only this process's own place is known.
    num_processes = rank.local_count if "LOCAL_WORLD_SIZE" in environ else rank.local_index + 1
    if len(gpus) < num_processes:
        raise UsageError(
            f"there are {num_processes} or more processes on this machine, and each sees "
            f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}: start no more processes than GPUs, give each "
            "process its own (srun --gpus-per-task=1), or use --device cpu"
        )
    return [gpus[rank.local_index]]


def serve_command(settings: OwnReplicaFields) -> tuple[str, ...]:
    """Return the module and arguments that serve the model; unset settings are left out."""
    # JSON, because this process reads the log.
    fixed = ("latentwire", "serve", "--host", LOOPBACK, "--log-format", "json")
    return (*fixed, *serve_arguments(settings))


def serve_arguments(settings: OwnReplicaFields) -> tuple[str, ...]:
    """Return the flags of `latentwire serve` that say how the model is computed."""
    values = {
        "--model": settings.model,
        "--revision": settings.revision,
        "--device": settings.device,
        "--dtype": settings.dtype,
        "--threads": settings.threads,
        "--max-slots": settings.max_slots,
        "--max-model-len": settings.max_model_len,
        "--engine": settings.engine,
        "--tensor-parallel-size": settings.tensor_parallel_size,
        "--pipeline-parallel-size": settings.pipeline_parallel_size,
        "--gpu-memory-utilization": settings.gpu_memory_utilization,
        "--quantization": settings.quantization,
    }
    given = [(flag, str(value)) for flag, value in values.items() if value is not None]
    flags = [part for pair in given for part in pair]
    for argument in settings.engine_arg:
        flags += ["--engine-arg", argument]
    if settings.trust_remote_code:
        flags.append("--trust-remote-code")
    return tuple(flags)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
