"""From numbers to words: the facts and problems of a dataset, and the data of its charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentwire.protocol import latent_info
from latentwire_batch.dataset.manifest import cut_plans
from latentwire_batch.inspection.statistics import Floats, Inspection

_MAX_BINS = 20
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: the number of latents with `low..high` rows."""

    low: int
    high: int
    count: int

    @property
    def label(self) -> str:
        """The range in words."""
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True)
class Origin:
    """What is known about how a dataset was made.

    Attributes:
        declared: the manifest of its output, or what its files say themselves; None for nothing.
        num_failures: rows of the input that are missing because they failed.
    """

    declared: Mapping[str, Any] | None = None
    num_failures: int = 0


def facts(inspection: Inspection, num_file_bytes: int, origin: Origin) -> dict[str, str]:
    """Return the facts to show, in order.

    Args:
        inspection: of the dataset.
        num_file_bytes: its size on disk.
        origin: of the dataset.
    """
    lengths = np.frombuffer(inspection.lengths, dtype=np.int64)
    found = {
        "rows": f"{inspection.num_rows:,}",
        "hidden rows": f"{inspection.num_hidden_rows:,}",
        "hidden rows per latent": _spread(lengths),
        "hidden size": ", ".join(map(str, sorted(inspection.widths))) or "none",
        "latent bytes": _size(inspection.num_latent_bytes),
        "text bytes": _size(inspection.num_text_bytes),
        "bytes on disk": _size(num_file_bytes),
        "norm of a hidden row": _norm(inspection),
    }
    try:
        return found | _declared_facts(origin.declared or {})
    except (LookupError, TypeError, ValueError, AttributeError):
        # Another program wrote it, or damaged it.
        return found


def _declared_facts(declared: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    if "model" in declared:
        model, settings = declared["model"], declared["settings"]
        revision = f" at {model['revision']}" if model["revision"] else ""
        latent = latent_info(model["model"], model["revision"])
        found |= {
            "model": f"{model['model']}{revision}",
            **_engine(model),
            "latent": latent.model_copy(update=declared["latent"]).meaning,
            "k": "all rows" if settings["k"] is None else str(settings["k"]),
            "seed": str(settings["seed"]),
        }
        found |= {name: str(value) for name, value in settings["sampling"].items() if value != []}
    if "counts" in declared:
        counts = declared["counts"]
        found |= {
            "prompt tokens": f"{counts['prompt_tokens']:,}",
            "completion tokens": f"{counts['completion_tokens']:,}",
            "plans cut by a limit": f"{cut_plans(counts['finish_reasons']):,} of "
            f"{counts['finished']:,}",
            "failed rows": f"{counts['failed']:,}",
        }
    return found


def _engine(model: Mapping[str, Any]) -> dict[str, str]:
    # Manifests of earlier versions do not name it.
    name, version = model.get("engine"), model.get("engine_version")
    return {"engine": f"{name} {version}" if version else str(name)} if name else {}


def problems(inspection: Inspection, origin: Origin | None = None) -> list[str]:
    """Name the problems that make a dataset unfit for training; empty for a sound one.

    Args:
        inspection: of the dataset.
        origin: of the dataset.
    """
    found: list[str] = []
    if not inspection.num_rows:
        found.append("the dataset holds no rows")
    if origin is not None and origin.num_failures:
        num_rows = inspection.num_rows + origin.num_failures
        found.append(
            f"{origin.num_failures:,} of {num_rows:,} rows are missing, because they failed: see "
            "failures.jsonl"
        )
    if inspection.num_nan or inspection.num_infinite:
        found.append(
            f"{inspection.num_nan:,} values are NaN and {inspection.num_infinite:,} infinite"
        )
    if inspection.num_ragged:
        found.append(f"{inspection.num_ragged:,} rows hold latents whose rows differ in length")
    if inspection.bad_rows:
        found[-1] += f", first in rows {', '.join(map(str, inspection.bad_rows))}"
    if len(inspection.widths) > 1:
        found.append(f"rows differ in hidden size: {sorted(inspection.widths)}")
    num_repeated, rows = inspection.duplicates()
    if num_repeated:
        named = ", ".join(map(str, rows))
        found.append(f"{num_repeated:,} rows repeat an earlier row's task_id, first rows {named}")
    return found


def length_histogram(inspection: Inspection) -> list[Bin]:
    """Count latents by their number of rows, in at most 20 bins of equal width."""
    lengths = np.frombuffer(inspection.lengths, dtype=np.int64)
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // _MAX_BINS)
    counts = np.bincount((lengths - low) // width)
    return [
        Bin(low + i * width, min(high, low + (i + 1) * width - 1), int(count))
        for i, count in enumerate(counts)
    ]


def thinned(values: Floats, num_points: int) -> list[tuple[int, float]]:
    """Average neighbours down to at most `num_points` values, each with its first index."""
    size = -(-len(values) // num_points) if len(values) else 1
    return [
        (start, float(np.nanmean(part)))
        for start in range(0, len(values), size)
        if not np.isnan(part := values[start : start + size]).all()
    ]


def norm_profile(values: Floats, num_points: int) -> list[tuple[int, float]]:
    """Return the first value, and the others averaged down to at most `num_points - 1` values.

    The norm of hidden row 0 often differs from all others by far: an average would hide it.
    """
    later = [(start + 1, value) for start, value in thinned(values[1:], num_points - 1)]
    return thinned(values[:1], 1) + later


def _spread(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    if not len(lengths):
        return "none"
    quarters = np.percentile(lengths, (0, 25, 50, 75, 100), method="nearest")
    numbers = " / ".join(f"{int(value):,}" for value in quarters)
    return f"{numbers} (minimum, quartiles, maximum); mean {lengths.mean():,.1f}"


def _norm(inspection: Inspection) -> str:
    norms = inspection.norms
    if not norms.counts.sum():
        return "none"
    mean = norms.sums.sum() / norms.counts.sum()
    return f"{norms.lows.min():.3f} to {norms.highs.max():.3f}, mean {mean:.3f}"


def _size(num_bytes: int) -> str:
    value, unit = float(num_bytes), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{num_bytes:,} bytes" if not unit else f"{value:,.1f} {_UNITS[unit]}"
