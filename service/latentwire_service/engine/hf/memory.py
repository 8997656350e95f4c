"""How many slots of which length fit into the available memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from latentwire_service.engine.errors import ModelError

# On the measured devices, more slots cost memory and gain no throughput.
DEFAULT_MAX_SLOTS = 64
# Plans are short, and few slots would fit if each reserved all positions of a long-context model.
DEFAULT_MAX_MODEL_LEN = 4096


@dataclass(frozen=True, slots=True)
class Capacity:
    """The number of slots, their length, and their memory.

    Attributes:
        max_slots: sequences that run together.
        max_model_len: positions of one sequence.
        cache_bytes: the size of the KV cache.
        budget_bytes: the memory that the KV cache may use.
    """

    max_slots: int
    max_model_len: int
    cache_bytes: int
    budget_bytes: int


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a device, in bytes.

    On the CPU, this is the smaller of the system's free memory and the rest of the control group's
    limit. The CUDA branch runs on a GPU only.
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
    """Choose the number of slots and their length.

    Args:
        max_slots: the configured slots; None to choose them.
        max_model_len: the configured positions of a sequence; None to choose them.
        model_max_len: the longest sequence of the model; None if its config does not state it.
        bytes_per_position: keys and values of one position, all layers.
        row_bytes: one hidden row in float32; one is kept per generated token.
        available: free bytes on the device.
        memory_fraction: the part of the free bytes that may be used.
        host_available: free bytes on the host, which keeps the hidden rows of unfinished requests;
            None if the device uses the host's memory, as the CPU does.

    Raises:
        ModelError: the settings need more than the model or the memory has; the message has the
            numbers.
    """
    if max_model_len is not None and model_max_len is not None and max_model_len > model_max_len:
        raise ModelError(
            f"max_model_len {max_model_len} exceeds the {model_max_len} positions of the model"
        )
    pools = [_Pool(bytes_per_position + row_bytes, available, memory_fraction)]
    if host_available is not None:
        pools = [
            _Pool(bytes_per_position, available, memory_fraction),
            _Pool(row_bytes, host_available, memory_fraction),
        ]
    slots, length = _fit(pools, max_slots, max_model_len, model_max_len or DEFAULT_MAX_MODEL_LEN)
    cache_bytes = slots * (length + 1) * bytes_per_position
    return Capacity(slots, length, cache_bytes, budget_bytes=pools[0].budget)


def _fit(
    pools: Sequence[_Pool], max_slots: int | None, max_model_len: int | None, model_max_len: int
) -> tuple[int, int]:
    """Return slots and length that fit into each pool; choose those that are None."""
    length = max_model_len or min(model_max_len, DEFAULT_MAX_MODEL_LEN)
    if max_model_len is None:
        length = min(length, *(pool.max_length(max_slots or 1) for pool in pools))
    slots = max_slots or min(DEFAULT_MAX_SLOTS, *(pool.max_slots(length) for pool in pools))
    for pool in pools:
        pool.check(max(slots, 1), max(length, 1))
    return slots, length


@dataclass(frozen=True, slots=True)
class _Pool:
    """A memory in which every position of every slot takes `position_bytes`."""

    position_bytes: int
    available: int
    fraction: float

    @property
    def budget(self) -> int:
        return int(self.available * self.fraction)

    def slot_bytes(self, length: int) -> int:
        # The KV cache has one more position than a sequence, for scratch.
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
    """Return all of the memory, because macOS has no portable interface for the free part."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_available() -> list[int]:
    """Return the bytes left below the control group's limit (cgroup v2); empty without a limit."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text(encoding="utf-8")
        used = (root / "memory.current").read_text(encoding="utf-8")
        lines = (root / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    if limit.strip() == "max":
        return []
    # Weights read from disk stay in the page cache and count as used, but the kernel can free them.
    cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return [max(int(limit) - int(used) + cached, 0)]
