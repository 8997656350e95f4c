"""Small charts as SVG text: bars, a line with a band, points, intervals. Knows only numbers.

Own code, because a report must be one file that loads nothing, and a plotting library would be the
largest dependency of the extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

# Small, so that a chart fits on a phone. The page enlarges the letters there: margins have room.
_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 88, 12, 14, 54
_TICK = _HEIGHT - _BOTTOM + 19
_MAX_LINE_POINTS = 600
_MAX_BAR_LABELS = 8

# Of a chart of intervals: room for the names, and for half a number on the right.
_NAMES_WIDTH, _MARGIN, _MARK_HEIGHT = 120, 24, 24

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Axis:
    """The labels of the two axes."""

    across: str
    up: str


@dataclass(frozen=True)
class Mark:
    """A named value and its interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Named:
    """A named point."""

    name: str
    across: float
    up: float


@dataclass(frozen=True)
class _Scale:
    """Maps values to coordinates on one axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def bars(values: Sequence[tuple[str, int]], axis: Axis) -> str:
    """Draw labelled bars."""
    if not values:
        return _nothing()
    highest = max(count for _, count in values)
    up = _up(0, highest)
    labelled = _bar_labels(len(values))
    step = (_WIDTH - _LEFT - _RIGHT) / len(values)
    parts = []
    for position, (label, count) in enumerate(values):
        left, top = _LEFT + position * step, up(count)
        height = _HEIGHT - _BOTTOM - top
        parts.append(
            f'<rect x="{left + 1:.1f}" y="{top:.1f}" width="{max(step - 2, 1):.1f}" '
            f'height="{height:.1f}" fill="var(--mark)"><title>{escape(label)}: {count}</title>'
            "</rect>"
        )
        if position in labelled:
            parts.append(_text(left + step / 2, _TICK, label, is_minor=labelled[position]))
    # Counts are whole numbers.
    return _svg(parts, up, axis, sorted({0, highest // 2, highest}))


def line(means: Numbers, deviations: Numbers, axis: Axis) -> str:
    """Draw a line over its index, with a band of one deviation on either side."""
    places = np.flatnonzero(np.isfinite(means))
    if not len(places):
        return _nothing()
    places = places[np.linspace(0, len(places) - 1, min(len(places), _MAX_LINE_POINTS)).astype(int)]
    middle, spread = means[places], deviations[places]
    across = _Scale(float(places[0]), float(places[-1]), _LEFT, _WIDTH - _RIGHT)
    up = _up(max(0.0, float((middle - spread).min())), float((middle + spread).max()))
    edge = _path(across, up, places, middle + spread)
    edge += " " + _path(across, up, places[::-1], (middle - spread)[::-1])
    parts = [
        f'<polygon points="{edge}" fill="var(--band)"/>',
        f'<polyline points="{_path(across, up, places, middle)}" fill="none" stroke="var(--mark)" '
        'stroke-width="2"/>',
    ]
    parts += [
        _text(across(float(places[position])), _TICK, str(int(places[position])))
        for position in _spread(len(places), 5)
    ]
    return _svg(parts, up, axis, _ticks(up))


def points(places: Numbers, weights: Numbers, axis: Axis) -> str:
    """Draw points; a greater weight is stronger, on light and on dark paper."""
    if not len(places):
        return _nothing()
    across = _Scale(*_range(places[:, 0]), _LEFT + 6, _WIDTH - _RIGHT - 6)
    up = _up(*_range(places[:, 1]))
    strength = _Scale(*_range(weights), 0.3, 0.95)
    parts = [
        f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.6" fill="var(--mark)" '
        f'fill-opacity="{strength(weight):.2f}"><title>{int(weight)} hidden rows</title>'
        "</circle>"
        for (x, y), weight in zip(places.tolist(), weights.tolist(), strict=True)
    ]
    middle = (across.low + across.high) / 2
    parts += [
        _text(across(value), _TICK, f"{value:.4g}", anchor)
        for value, anchor in ((across.low, "start"), (middle, "middle"), (across.high, "end"))
    ]
    return _svg(parts, up, axis, _ticks(up))


def named_points(found: Sequence[Named], axis: Axis) -> str:
    """Draw points with their names, over a logarithmic axis.

    Args:
        found: values across are positive.
        axis: names of the axes.
    """
    if not found:
        return _nothing()
    sizes = np.log10([each.across for each in found])
    across = _Scale(*_range(sizes), _LEFT + 6, _WIDTH - _NAMES_WIDTH)
    up = _up(*_range(np.array([each.up for each in found])))
    parts = []
    for each, size in zip(found, sizes.tolist(), strict=True):
        x, y = across(size), up(each.up)
        known = f"{each.name}: {each.across:,.0f}, {each.up:.3f}"
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="var(--mark)">'
            f"<title>{escape(known)}</title></circle>",
            _text(x + 6, y + 3, each.name, anchor="start", is_minor=True),
        ]
    parts += [
        _text(across(value), _TICK, f"{10**value:,.0f}")
        for value in sorted({across.low, (across.low + across.high) / 2, across.high})
    ]
    return _svg(parts, up, axis, _ticks(up))


def intervals(marks: Sequence[Mark], across_name: str) -> str:
    """Draw named values below each other, each with its interval.

    Args:
        marks: from the top down.
        across_name: name of the axis that shows the values.
    """
    if not marks:
        return _nothing()
    low = min(0.0, *(mark.low for mark in marks))
    across = _Scale(low, max(mark.high for mark in marks), _NAMES_WIDTH, _WIDTH - _MARGIN)
    base = _TOP + len(marks) * _MARK_HEIGHT
    parts = [
        f'<line x1="{_NAMES_WIDTH}" x2="{_WIDTH - _MARGIN}" y1="{base}" y2="{base}" '
        'stroke="var(--faint)"/>',
        *(_text(across(value), base + 19, f"{value:.4g}") for value in _ticks(across)),
        _text((_NAMES_WIDTH + _WIDTH) / 2, base + 40, across_name),
    ]
    for position, mark in enumerate(marks):
        y = _TOP + (position + 0.5) * _MARK_HEIGHT
        known = f"{mark.name}: {mark.value:.3f}, {mark.low:.3f} to {mark.high:.3f}"
        parts += [
            _text(_NAMES_WIDTH - 10, y + 4, mark.name, anchor="end"),
            f'<line x1="{across(mark.low):.1f}" x2="{across(mark.high):.1f}" y1="{y:.1f}" '
            f'y2="{y:.1f}" stroke="var(--mark)" stroke-width="7" stroke-opacity="0.35"/>',
            f'<circle cx="{across(mark.value):.1f}" cy="{y:.1f}" r="4.5" fill="var(--mark)">'
            f"<title>{escape(known)}</title></circle>",
        ]
    body = "\n".join(parts)
    name = escape(f"{across_name} by name, with intervals")
    height = base + 50
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{name}">\n{body}\n</svg>'


def _svg(parts: Sequence[str], up: _Scale, axis: Axis, ticks: Sequence[float]) -> str:
    base = _HEIGHT - _BOTTOM
    frame = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}" '
        'stroke="var(--faint)"/>',
        *(_text(_LEFT - 8, up(value) + 4, f"{value:.4g}", anchor="end") for value in ticks),
        _text((_LEFT + _WIDTH) / 2, _HEIGHT - 10, axis.across),
        f'<text transform="translate(16 {base / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(axis.up)}</text>",
    ]
    body = "\n".join([*frame, *parts])
    name = escape(f"{axis.up} by {axis.across}")
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">\n{body}\n</svg>'


def _up(low: float, high: float) -> _Scale:
    return _Scale(low, high, _HEIGHT - _BOTTOM, _TOP)


def _ticks(scale: _Scale) -> Sequence[float]:
    return sorted({scale.low, (scale.low + scale.high) / 2, scale.high})


def _bar_labels(count: int) -> dict[int, bool]:
    """Return the bars that get a label, and whether a narrow screen leaves it out."""
    step = -(-count // _MAX_BAR_LABELS)
    # The last bar has a label, and none is nearer to another than `step`.
    places = [*range(0, count, step)][:-1] + [count - 1]
    last = len(places) - 1
    return {
        place: index != last and (index % 2 == 1 or 0 < index == last - 1)
        for index, place in enumerate(places)
    }


def _spread(count: int, limit: int) -> list[int]:
    """Return positions from first to last, at even distances: all of them, or `limit`."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, limit)).tolist()})


def _range(values: Numbers) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _path(across: _Scale, up: _Scale, places: Numbers, values: Numbers) -> str:
    pairs = zip(places.tolist(), values.tolist(), strict=True)
    return " ".join(f"{across(step):.1f},{up(value):.1f}" for step, value in pairs)


def _text(x: float, y: float, text: str, anchor: str = "middle", *, is_minor: bool = False) -> str:
    """Place a text. A narrow screen leaves out the minor ones."""
    kind = ' class="minor"' if is_minor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'


def _nothing() -> str:
    return '<p class="note">No data to draw.</p>'
