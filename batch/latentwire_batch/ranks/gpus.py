"""Which GPUs this process may use, and which of them are its own among several processes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

# For CUDA, then for ROCm, whose torch calls its devices `cuda` too.
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# An index or a UUID. Others, like the NoDevFiles that Slurm writes, are no device.
_NAME = re.compile(r"\d+|(?:GPU|MIG)-\S+")
_MIG_UUID = re.compile(r"\(UUID: (MIG-[^)\s]+)\)")
_TOOL_TIMEOUT_S = 60


def visibility_variable(environ: Mapping[str, str]) -> str:
    """Return the variable that restricts the GPUs; CUDA_VISIBLE_DEVICES when none does."""
    return next((name for name in _VARIABLES if name in environ), _VARIABLES[0])


def restrict(environ: Mapping[str, str], gpu: str) -> dict[str, str]:
    """Return the environment of a process that sees one GPU only.

    Args:
        environ: of this process.
        gpu: one of `visible_gpus(environ)`.
    """
    variable = visibility_variable(environ)
    child = {**environ, variable: gpu}
    if variable == "CUDA_VISIBLE_DEVICES":
        # ROCm prefers this one to CUDA's, and it lists the GPUs of all children.
        child.pop("HIP_VISIBLE_DEVICES", None)
    return child


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """List the GPUs that this process may use, in the words of CUDA_VISIBLE_DEVICES.

    Without such a variable the driver's own tool lists them: importing torch would take seconds and
    a CUDA context in a process that needs neither.
    """
    listed = environ.get(visibility_variable(environ))
    if listed is None:
        return _listed_by_driver()
    names = [name.strip() for name in listed.split(",")]
    # CUDA itself stops at the first name that is not a device.
    end = next((i for i, name in enumerate(names) if not _NAME.fullmatch(name)), len(names))
    return names[:end]


def are_own(gpus: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether the visible GPUs belong to this process alone, among several of one run.

    `torchrun` shows all its processes the same GPUs. Slurm shows each task its own ones, unless it
    binds none.

    Args:
        gpus: that this process sees.
        environ: of this process.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        return False
    per_task = re.search(r"(\d+)$", environ.get("SLURM_GPUS_PER_TASK", ""))
    if per_task and len(gpus) <= int(per_task[1]):
        return True
    # Nobody counted the processes of this machine: as in a container for each, with its own GPU.
    is_uncounted = not {"LOCAL_RANK", "SLURM_LOCALID"} & environ.keys()
    return len(gpus) == 1 and (visibility_variable(environ) in environ or is_uncounted)


def _listed_by_driver() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        answer = subprocess.run(
            [tool, "-L"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_TOOL_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        # The replica's own library finds out what is there.
        return []
    gpus: list[list[str]] = []
    for line in answer.stdout.splitlines():
        if line.startswith("GPU "):
            gpus.append([])
        elif (uuid := _MIG_UUID.search(line)) and gpus:
            gpus[-1].append(uuid[1])
    # A divided GPU is used by its parts, which have UUIDs only.
    return [name for index, parts in enumerate(gpus) for name in parts or [str(index)]]
