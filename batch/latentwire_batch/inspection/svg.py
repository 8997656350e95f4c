"""Three small charts as SVG text: bars, a line with a band, and points. Knows only numbers.

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

_WIDTH, _HEIGHT = 900, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 88, 12, 12, 44
_MAX_LINE_POINTS = 600

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Axis:
    """The labels of the two axes."""

    across: str
    up: str


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
    up = _up(0, max(count for _, count in values))
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
        if len(values) <= 10 or position % 2 == 0:
            parts.append(_text(left + step / 2, _HEIGHT - _BOTTOM + 16, label))
    return _svg(parts, up, axis)


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
        _text(across(float(place)), _HEIGHT - _BOTTOM + 16, str(int(place)))
        for place in np.unique(places[np.linspace(0, len(places) - 1, 6).astype(int)])
    ]
    return _svg(parts, up, axis)


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
        _text(across(value), _HEIGHT - _BOTTOM + 16, f"{value:.4g}", anchor)
        for value, anchor in ((across.low, "start"), (middle, "middle"), (across.high, "end"))
    ]
    return _svg(parts, up, axis)


def _svg(parts: Sequence[str], up: _Scale, axis: Axis) -> str:
    base = _HEIGHT - _BOTTOM
    frame = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}" '
        'stroke="var(--faint)"/>',
        *(
            _text(_LEFT - 8, up(value) + 4, f"{value:.4g}", anchor="end")
            for value in (up.low, (up.low + up.high) / 2, up.high)
        ),
        _text((_LEFT + _WIDTH) / 2, _HEIGHT - 8, axis.across),
        f'<text transform="translate(14 {base / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(axis.up)}</text>",
    ]
    body = "\n".join([*frame, *parts])
    # Labels stay readable on a narrow screen: the chart keeps its size there and is scrolled.
    return (
        '<div class="chart">'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">\n{body}\n</svg></div>'
    )


def _up(low: float, high: float) -> _Scale:
    return _Scale(low, high, _HEIGHT - _BOTTOM, _TOP)


def _range(values: Numbers) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _path(across: _Scale, up: _Scale, places: Numbers, values: Numbers) -> str:
    pairs = zip(places.tolist(), values.tolist(), strict=True)
    return " ".join(f"{across(step):.1f},{up(value):.1f}" for step, value in pairs)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _nothing() -> str:
    return '<p class="note">No data to draw.</p>'
