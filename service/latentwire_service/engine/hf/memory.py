"""How many slots of what length fit into the memory that is there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from latentwire_service.engine.errors import ModelError

# More slots than this gain no throughput on the devices measured, but cost memory.
DEFAULT_MAX_SLOTS = 64
# Plans are short: with every position of a long-context model reserved, few slots would fit.
DEFAULT_MAX_MODEL_LEN = 4096


@dataclass(frozen=True, slots=True)
class Capacity:
    """Slots and their length, and what they take.

    Attributes:
        max_slots: sequences at once.
        max_model_len: positions of one sequence.
        cache_bytes: the KV cache's size.
        budget_bytes: what it could have taken.
    """

    max_slots: int
    max_model_len: int
    cache_bytes: int
    budget_bytes: int


def available_bytes(device: torch.device) -> int:
    """Free memory of the device; on the CPU, what the system and the control group leave.

    The CUDA branch is reached on a GPU only.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min([_meminfo_available() or _physical_bytes(), *_cgroup_available()])


def plan_capacity(
    *,
    max_slots: int | None,
    max_model_len: int | None,
    model_max_len: int | None,
    bytes_per_position: int,
    row_bytes: int,
    available: int,
    memory_fraction: float,
    host_available: int | None = None,
) -> Capacity:
    """Decide slots and length from settings (None: automatic) and memory.

    Args:
        max_slots: slots asked for.
        max_model_len: positions asked for.
        model_max_len: positions the model was made for; None when it does not say.
        bytes_per_position: keys and values of one position, all layers.
        row_bytes: one hidden row in float32, kept per generated token.
        available: free bytes on the device.
        memory_fraction: the part of them that may be used.
        host_available: free bytes of the host's memory, where hidden rows wait for their request to
            finish; None when the device's memory is the host's, as on the CPU.

    Raises:
        ModelError: the settings cannot be met; the message has the numbers.
    """
    if max_model_len is not None and model_max_len is not None and max_model_len > model_max_len:
        raise ModelError(
            f"max_model_len {max_model_len} exceeds the {model_max_len} positions of the model"
        )
    budget = int(available * memory_fraction)
    pools = [_Pool(bytes_per_position + row_bytes, available, memory_fraction)]
    if host_available is not None:
        pools = [
            _Pool(bytes_per_position, available, memory_fraction),
            _Pool(row_bytes, host_available, memory_fraction),
        ]
    length = max_model_len or min(model_max_len or DEFAULT_MAX_MODEL_LEN, DEFAULT_MAX_MODEL_LEN)
    if max_model_len is None:
        length = min(length, *(pool.max_length(max_slots or 1) for pool in pools))
    slots = max_slots or min(DEFAULT_MAX_SLOTS, *(pool.max_slots(length) for pool in pools))
    for pool in pools:
        pool.check(max(slots, 1), max(length, 1))
    return Capacity(slots, length, slots * (length + 1) * bytes_per_position, budget)


@dataclass(frozen=True, slots=True)
class _Pool:
    """One memory that every position of every slot takes a part of."""

    position_bytes: int
    available: int
    fraction: float

    @property
    def budget(self) -> int:
        return int(self.available * self.fraction)

    def slot_bytes(self, length: int) -> int:
        # One position more than a sequence has: the scratch position of the KV cache.
        return (length + 1) * self.position_bytes

    def max_length(self, slots: int) -> int:
        return max(self.budget // (slots * self.position_bytes) - 1, 0)

    def max_slots(self, length: int) -> int:
        return max(self.budget // self.slot_bytes(length), 0)

    def check(self, slots: int, length: int) -> None:
        needed = slots * self.slot_bytes(length)
        if needed > self.budget:
            raise ModelError(
                f"{slots} slot(s) of {length} positions need {needed / 2**20:.0f} MiB; "
                f"{self.budget / 2**20:.0f} MiB may be used ({self.fraction:.0%} of "
                f"{self.available / 2**20:.0f} MiB free)"
            )


def _physical_bytes() -> int:
    """All of the memory: macOS has no portable word for the free part."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_available() -> list[int]:
    """Bytes a memory-limited container has left; nothing where there is no limit (cgroup v2)."""
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = (root / "memory.max").read_text(), (root / "memory.current").read_text()
        lines = (root / "memory.stat").read_text().splitlines()
    except OSError:
        return []
    if limit.strip() == "max":
        return []
    # Weights read from disk stay in the page cache and count as used; the kernel gives them up.
    cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return [max(int(limit) - int(used) + cached, 0)]
