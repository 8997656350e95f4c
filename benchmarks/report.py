"""Tables of measurements."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

_WIDTH = 100
# These two generate the same tokens, with the same number of requests in flight.
_IN_PROCESS, _OVER_HTTP = "latentwire-eos", "latentwire-http"


@dataclass(frozen=True)
class Measurement:
    """One round of one contender, as the worker reports it."""

    num_tokens: int
    seconds: float
    ttft_s: float | None
    tpot_s: float | None
    peak_rss_bytes: int

    @property
    def tokens_per_s(self) -> float:
        """Throughput."""
        return self.num_tokens / self.seconds


def print_table(title: str, rounds: Mapping[str, Sequence[Measurement]]) -> None:
    """Print median, minimum and maximum of each contender, and ratios of the first to the rest."""
    table = Table(title=title)
    columns = ["contender", "tokens/s", "min", "max", "TTFT ms", "ms/token", "peak MiB", "ratio"]
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


def _milliseconds(
    measurements: Sequence[Measurement], value_of: Callable[[Measurement], float | None]
) -> str:
    values = [value for m in measurements if (value := value_of(m)) is not None]
    return f"{statistics.median(values) * 1e3:.1f}" if values else "-"
