"""What a process and its children have used (Linux)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Of a process and its living descendants.

    Attributes:
        cpu_s: CPU time since they started.
        peak_rss_bytes: sum of the peaks of their resident memory.
    """

    cpu_s: float
    peak_rss_bytes: int


def usage_of(pid: int) -> Usage:
    """Return what a process and its descendants have used."""
    pids = [pid, *_descendants(pid)]
    return Usage(sum(map(_cpu_s, pids)), sum(map(_peak_rss_bytes, pids)))


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (own := children.get(waiting.pop(), []))
        found += own
    return found


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _cpu_s(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S if fields else 0.0


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name; none if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _peak_rss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    peaks = [int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:")]
    return peaks[0] * 1024 if peaks else 0
