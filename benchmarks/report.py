"""Tables of measurements."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

_WIDTH = 110
# These two generate the same tokens, with the same number of requests in flight.
_IN_PROCESS, _OVER_HTTP = "latentwire-eos", "latentwire-http"
_ALL_ROWS = "vllm-latents"
_WITHOUT_ROWS = {
    "vllm-latents-k0": "the same engine, with no rows",
    "vllm-stream": "vLLM's text, streamed",
}


@dataclass(frozen=True)
class Measurement:
    """One round of one contender, as the worker reports it.

    Attributes:
        num_tokens, seconds, ttft_s, tpot_s: as in `Sample`.
        cpu_s: CPU time of its processes in this round.
        peak_rss_bytes: sum of the peaks of its processes' resident memory so far.
    """

    num_tokens: int
    seconds: float
    ttft_s: float | None
    tpot_s: float | None
    cpu_s: float
    peak_rss_bytes: int

    @property
    def tokens_per_s(self) -> float:
        """Throughput."""
        return self.num_tokens / self.seconds


def print_table(title: str, rounds: Mapping[str, Sequence[Measurement]]) -> None:
    """Print median, minimum and maximum of each contender, and ratios of the first to the rest."""
    table = Table(title=title)
    columns = ["contender", "tokens/s", "min", "max", "TTFT ms", "ms/token", "CPU ms", "peak MiB"]
    columns.append("ratio")
    for column in columns:
        table.add_column(column, justify="left" if column == "contender" else "right")
    first = next(iter(rounds.values()))
    ours = statistics.median(m.tokens_per_s for m in first)
    for name, measurements in rounds.items():
        rates = [m.tokens_per_s for m in measurements]
        table.add_row(
            name,
            f"{statistics.median(rates):.1f}",
            f"{min(rates):.1f}",
            f"{max(rates):.1f}",
            _milliseconds(measurements, lambda m: m.ttft_s),
            _milliseconds(measurements, lambda m: m.tpot_s),
            f"{statistics.median(m.cpu_s / m.num_tokens for m in measurements) * 1e3:.2f}",
            f"{max(m.peak_rss_bytes for m in measurements) / 2**20:.0f}",
            f"{ours / statistics.median(rates):.2f}",
        )
    # A fixed width, so that a file has whole names, too.
    console = Console(width=_WIDTH)
    console.print(table)
    if {_IN_PROCESS, _OVER_HTTP} <= rounds.keys():
        rates = [
            statistics.median(m.tokens_per_s for m in rounds[name])
            for name in (_OVER_HTTP, _IN_PROCESS)
        ]
        console.print(
            f"over HTTP / in process, both to the end of sequence: {rates[0] / rates[1]:.3f}"
        )

    if _ALL_ROWS in rounds:
        for name in _WITHOUT_ROWS.keys() & rounds.keys():
            console.print(_cost(rounds[_ALL_ROWS], rounds[name], _WITHOUT_ROWS[name]))


def _cost(rows: Sequence[Measurement], without: Sequence[Measurement], what: str) -> str:
    """Compare each round with the one next to it, because the machine's speed drifts."""
    costs = sorted(
        1 - mine.tokens_per_s / other.tokens_per_s
        for mine, other in zip(rows, without, strict=True)
    )
    quarter = len(costs) // 4
    return (
        f"all rows next to {what}: {statistics.median(costs):.1%} fewer tokens/s "
        f"(half of the rounds: {costs[quarter]:.1%} to {costs[-1 - quarter]:.1%})"
    )


def _milliseconds(
    measurements: Sequence[Measurement], value_of: Callable[[Measurement], float | None]
) -> str:
    values = [value for m in measurements if (value := value_of(m)) is not None]
    return f"{statistics.median(values) * 1e3:.1f}" if values else "-"
