"""Curves of a run as one small SVG file: panels with axes, for a model card. Text in, text out; nothing is drawn that was not logged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Point = tuple[float, float]

WIDTH, HEIGHT = 400, 240
"""Of a panel, in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 46, 34
"""Room around the plot in a panel."""
COLUMNS = 2
COLOURS = ("#2563eb", "#ea580c", "#059669", "#7c3aed")
MAX_POINTS = 160
"""Points of a line; more are averaged, so that noise does not become a band."""
MAX_PANELS = 6

PANELS = (
    ("loss", ("loss", "eval_loss")),
    ("reward", ("reward/mean", "eval_reward")),
    ("accuracy", ("rewards/accuracies", "eval_rewards/accuracies", "accuracy", "eval_accuracy")),
    ("margin", ("rewards/margins", "eval_rewards/margins", "margin", "eval_margin")),
    ("token accuracy", ("mean_token_accuracy", "eval_mean_token_accuracy")),
    ("KL to the reference", ("kl",)),
    ("entropy", ("entropy", "eval_entropy")),
    ("completion length", ("completions/mean_length",)),
    ("gradient norm", ("grad_norm",)),
    ("learning rate", ("learning_rate",)),
)
"""Title and figures of each panel, the most telling first; a panel none of whose figures was logged is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line."""

    label: str
    points: tuple[Point, ...]
    """(optimizer steps done, value), by step; all finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Lines that share their axes."""

    title: str
    curves: tuple[Curve, ...]


def panels_of(steps: Sequence[Mapping[str, float]]) -> tuple[Panel, ...]:
    """The panels that a run's metrics fill, at most `MAX_PANELS`; each of `steps` has a `step`."""
    panels = []
    for title, names in PANELS:
        curves = tuple(Curve(label=name, points=points) for name in names if (points := _points(steps, name)))
        if curves:
            panels.append(Panel(title=title, curves=curves))
    return tuple(panels[:MAX_PANELS])


def _points(steps: Sequence[Mapping[str, float]], name: str) -> tuple[Point, ...]:
    found = [(float(one["step"]), float(one[name])) for one in steps if name in one]
    return tuple(point for point in found if math.isfinite(point[1]))


def curves_svg(panels: Sequence[Panel]) -> str:
    """The panels, two in a row, as an SVG document; an empty one for none."""
    columns = min(COLUMNS, max(len(panels), 1))
    width, height = columns * WIDTH, math.ceil(len(panels) / columns) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for index, panel in enumerate(panels):
        parts.append(f'<g transform="translate({index % columns * WIDTH} {index // columns * HEIGHT})">')
        parts += _drawn(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _drawn(panel: Panel) -> Iterator[str]:
    xs = [x for curve in panel.curves for x, _ in curve.points]
    ys = [y for curve in panel.curves for _, y in _thinned(curve.points)]
    across, up = ticks(min(xs), max(xs), 6), ticks(min(ys), max(ys), 5)
    low, high = min(up[0], *ys), max(up[-1], *ys)
    first, last = min(xs), max(xs)
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> Point:
        share = (x - first) / (last - first) if last > first else 0.5
        return LEFT + share * inner_width, TOP + (1 - (y - low) / (high - low)) * inner_height

    yield f'<text x="{LEFT}" y="18" font-size="13" font-weight="600" fill="#111827">{escape(panel.title)}</text>'
    for y in up:
        level = at(first, y)[1]
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}" stroke="#e5e7eb"/>'
        yield f'<text x="{LEFT - 6}" y="{level + 4:.1f}" text-anchor="end" fill="#6b7280">{number(y)}</text>'
    for x in across:
        if first <= x <= last:
            place = at(x, low)[0]
            yield f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" fill="#6b7280">{number(x)}</text>'
    yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end" fill="#9ca3af" font-size="10">step</text>'
    yield from _legend(panel)
    for curve, colour in zip(panel.curves, COLOURS, strict=False):
        yield _line([at(*point) for point in _thinned(curve.points)], colour)


def _legend(panel: Panel) -> Iterator[str]:
    """Names of the lines, below the title."""
    left = float(LEFT)
    for curve, colour in zip(panel.curves, COLOURS, strict=False):
        yield f'<text x="{left:.1f}" y="34" fill="{colour}">{escape(curve.label)}</text>'
        left += 6.2 * len(curve.label) + 12


def _line(points: Sequence[Point], colour: str) -> str:
    if len(points) == 1:
        return f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3" fill="{colour}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"/>'


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MAX_POINTS`: neighbours averaged, the first and the last step kept in place."""
    count = min(MAX_POINTS, len(points))
    edges = [round(index * len(points) / count) for index in range(count + 1)]
    return [
        (math.fsum(x for x, _ in points[start:end]) / (end - start), math.fsum(y for _, y in points[start:end]) / (end - start))
        for start, end in pairwise(edges)
    ]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers around a range, at most `most` + 1 of them and at least two: the first not above it, the last not below it."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # flat, as far as a picture is concerned
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    while (math.ceil(high / step - 1e-9) - math.floor(low / step + 1e-9)) > most:
        step *= 2.5 if f"{step:e}"[0] == "2" else 2.0  # 1, 2, 5, 10
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's text: `0.25`, `1,200`, `3e-05`."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.3g}"
    return f"{value:.4g}"
