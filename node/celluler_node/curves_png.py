"""Curves as a picture, by matplotlib, which is an extra and slow to import."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from celluler.errors import LocalError
from celluler_node.curves import Panel, Sheet

_COLOURS = {
    "loss": "#0072b2",
    "metric": "#00835f",
    "norm": "#a2457f",
    "seconds": "#5d6b7a",
    "counted": "#4a9bd1",
    "no-weight": "#e69f00",
    "absent": "#b3bcc6",
}


def check_installed() -> None:
    """Raises LocalError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise LocalError("matplotlib is not installed, which draws PNGs", hint="--plot FILE.html needs nothing")


def draw(sheet: Sheet, path: Path) -> None:
    """Write a PNG; one pair of axes a panel, one below the other."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    count = max(1, len(sheet.panels))
    figure, axes = pyplot.subplots(count, figsize=(7, 1 + 2.4 * count), dpi=144, sharex=True, squeeze=False)
    for place, panel in enumerate(sheet.panels):
        _panel(axes[place][0], panel, sheet.total)
    if not sheet.panels:
        axes[0][0].set_title("no round was told of yet", fontsize=10)
    axes[-1][0].set_xlabel("round")
    figure.suptitle(f"{sheet.title}: {sheet.state}")
    figure.tight_layout()
    figure.savefig(path, format="png")
    pyplot.close(figure)


def _panel(axes: Any, panel: Panel, total: int) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter  # noqa: PLC0415

    if panel.stacked:
        feet = [0.0] * len(panel.curves[0].points)
        for curve in panel.curves:
            numbers, heights = zip(*curve.points, strict=True)
            axes.bar(numbers, heights, 0.84, bottom=feet, label=curve.name, color=_COLOURS[curve.role])
            feet = [foot + height for foot, height in zip(feet, heights, strict=True)]
        axes.set_ylim(0, 1.3 * max(1.0, *feet))
        axes.legend(fontsize=8, ncols=len(panel.curves), loc="upper right", frameon=False)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for curve in () if panel.stacked else panel.curves:
        numbers, values = zip(*curve.points, strict=True)
        axes.plot(numbers, values, marker="o", markersize=3, color=_COLOURS[curve.role], label=curve.name)
    if panel.band:
        numbers, lows, highs = zip(*panel.band, strict=True)
        axes.fill_between(numbers, lows, highs, color=_COLOURS[panel.curves[0].role], alpha=0.2, linewidth=0)
    if panel.from_zero and not panel.stacked:
        axes.set_ylim(0, 1.08 * max(panel.values) or 1.0)
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlim(0.4, max(2, total) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
