"""Curves as one HTML file: inline SVG, no script, nothing fetched, light or dark as the reader has it.

Everything that others wrote is escaped. The same sheet gives the same text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from celluler_node.curves import Curve, Panel, Sheet, ticks

WIDTH, HEIGHT = 720, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 28
_POINTS_SHOWN = 60
"""Up to so many rounds each point is marked."""

_STYLE = """\
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5d6b7a; --line: #d9dfe6; --page: #ffffff; --card: #f7f9fb;
  --loss: #0072b2; --metric: #00835f; --norm: #a2457f; --seconds: #5d6b7a;
  --counted: #4a9bd1; --no-weight: #e69f00; --absent: #b3bcc6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #9aa7b4; --line: #323c47; --page: #14191f;
  --card: #1b222a; --loss: #56b4e9; --metric: #35c79a; --norm: #dd8fbe; --seconds: #9aa7b4;
  --counted: #3d86b8; --no-weight: #e0a63a; --absent: #55616d; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 780px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1rem; margin: 1.6rem 0 .3rem; font-weight: 600; }
.state { color: var(--soft); font-weight: 400; } dl { display: grid; grid-template-columns: max-content 1fr;
  gap: 0 1rem; margin: .8rem 0; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; background: var(--card); border-radius: 6px; }
svg text { fill: var(--soft); font-size: 11px; } .grid { stroke: var(--line); stroke-width: 1; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; } .band { opacity: .2; }
.hit rect { fill: transparent; } .hit line { stroke: var(--soft); visibility: hidden; }
.hit:hover line { visibility: visible; }
.legend span { margin-right: 1.2rem; color: var(--soft); } .legend i { display: inline-block; width: .8em; height: .8em;
  border-radius: 2px; margin-right: .4em; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } th { text-align: left; color: var(--soft); }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; }
"""


def render(sheet: Sheet) -> str:
    refresh = "" if sheet.refresh_s is None else f'<meta http-equiv="refresh" content="{sheet.refresh_s}">\n'
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in sheet.facts)
    panels = "".join(_panel(panel, sheet.total) for panel in sheet.panels) or "<p>No round was told of yet.</p>\n"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n{refresh}'
        f"<title>{escape(sheet.title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(sheet.title)} <span class="state">{escape(sheet.state)}</span></h1>\n<dl>\n{facts}</dl>\n'
        f"{panels}{_table(sheet.members)}</body>\n</html>\n"
    )


# --- parts -------------------------------------------------------------------------------------------------------


class _Axes:
    """Where a round and a value are on the drawing, in pixels from its upper left corner."""

    def __init__(self, panel: Panel, total: int) -> None:
        rounds = [number for curve in panel.curves for number, _ in curve.points]
        self.first, self.last = 1, max(2, total, *rounds)
        self.low, self.high = _range(panel)
        self._way = math.log10 if panel.log else float
        self.ticks = ticks(self.low, self.high, log=panel.log)

    def x(self, number: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (number - self.first + 0.5) / (self.last - self.first + 1)

    def y(self, value: float) -> float:
        low, high = self._way(self.low), self._way(self.high)
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - self._way(value)) / (high - low)


def _range(panel: Panel) -> tuple[float, float]:
    values = panel.values
    low, high = min(values), max(values)
    if panel.from_zero:
        return 0.0, 1.08 * high or 1.0
    if panel.log:
        return low / 1.15, high * 1.15
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low = max(0.0, low - room) if low >= 0 else low - room
    return low, min(1.0, high + room) if panel.percent and high < 1 - room else high + room


def _panel(panel: Panel, total: int) -> str:
    axes = _Axes(panel, total)
    label = _percent if panel.percent else _plain
    drawn = [_grid(axes, label)]
    if panel.stacked:
        drawn.append(_bars(panel.curves, axes))
    else:
        drawn += [_band(panel, axes), *(_line(curve, axes) for curve in panel.curves)]
    drawn.append(_hits(panel, axes, label))
    legend = ""
    if len(panel.curves) > 1:
        keys = (f'<span><i style="background: var(--{one.role})"></i>{escape(one.name)}</span>' for one in panel.curves)
        legend = f'<p class="legend">{"".join(keys)}</p>\n'
    title = escape(panel.title)
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">\n{"".join(drawn)}</svg>\n'
    return f"<h2>{title}</h2>\n{picture}{legend}"


def _grid(axes: _Axes, label: Callable[[float], str]) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{axes.y(value):.1f}" y2="{axes.y(value):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{axes.y(value) + 4:.1f}" text-anchor="end">{label(value)}</text>\n'
        for value in axes.ticks
    ]
    whole = [int(value) for value in ticks(axes.first, axes.last, wanted=8) if value >= 1 and value == int(value)]
    lines += [
        f'<text x="{axes.x(number):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{number}</text>\n' for number in whole
    ]
    return "".join(lines)


def _line(curve: Curve, axes: _Axes) -> str:
    places = [(axes.x(number), axes.y(value)) for number, value in curve.points]
    path = " ".join(f"{'L' if n else 'M'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(places))
    text = f'<path class="curve" style="stroke: var(--{curve.role})" d="{path}"/>\n'
    if len(places) <= _POINTS_SHOWN:
        text += "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" style="fill: var(--{curve.role})"/>' for x, y in places
        )
    return text + "\n"


def _band(panel: Panel, axes: _Axes) -> str:
    if not panel.band:
        return ""
    above = [(axes.x(number), axes.y(high)) for number, _, high in panel.band]
    below = [(axes.x(number), axes.y(low)) for number, low, _ in reversed(panel.band)]
    if len(above) == 1:  # one round has no width
        above, below = _wide(above[0], 3.0), _wide(below[0], -3.0)
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*above, *below))
    return f'<polygon class="band" style="fill: var(--{panel.curves[0].role})" points="{corners}"/>\n'


def _wide(place: tuple[float, float], half: float) -> list[tuple[float, float]]:
    return [(place[0] - half, place[1]), (place[0] + half, place[1])]


def _bars(curves: Sequence[Curve], axes: _Axes) -> str:
    half = min(12.0, (axes.x(2) - axes.x(1)) * 0.42)
    drawn, feet = [], dict.fromkeys((number for number, _ in curves[0].points), 0.0)
    for curve in curves:
        for number, value in curve.points:
            top, foot = axes.y(feet[number] + value), axes.y(feet[number])
            feet[number] += value
            if value:
                drawn.append(
                    f'<rect x="{axes.x(number) - half:.1f}" y="{top:.1f}" width="{2 * half:.1f}" '
                    f'height="{foot - top:.1f}" style="fill: var(--{curve.role})"/>'
                )
    return "".join(drawn) + "\n"


def _hits(panel: Panel, axes: _Axes, label: Callable[[float], str]) -> str:
    """An invisible column a round, which says its values to whoever points at it."""
    told: dict[int, list[str]] = {}
    for curve in panel.curves:
        for number, value in curve.points:
            name = "" if len(panel.curves) == 1 and not panel.band else f"{curve.name} "
            told.setdefault(number, []).append(f"{name}{label(value)}")
    for number, low, high in panel.band:
        told[number].append(f"from {label(low)} to {label(high)}")
    width = axes.x(2) - axes.x(1)
    return "".join(
        f'<g class="hit"><title>round {number}: {escape(", ".join(said))}</title><rect '
        f'x="{axes.x(number) - width / 2:.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
        f'<line x1="{axes.x(number):.1f}" x2="{axes.x(number):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></g>\n'
        for number, said in sorted(told.items())
    )


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _table(rows: Sequence[Sequence[str]]) -> str:
    if len(rows) < 2:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows[1:])
    return f"<h2>members</h2>\n<table>\n<tr>{head}</tr>\n{body}</table>\n"
