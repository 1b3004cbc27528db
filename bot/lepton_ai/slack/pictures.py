# SPDX-License-Identifier: Apache-2.0
"""Pictures where people look: PNGs that read in Slack's light and dark themes, with the same in words for who cannot see them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

GIB = 1024**3
MOST_HOSTS = 40  # bars in one picture
MOST_LINES = 8
Lines = Sequence[tuple[Mapping[str, str], Sequence[float], Sequence[float]]]  # (labels, times, values)
BACKGROUND, INK, USED, FREE = "#f7f6fa", "#1d1a21", "#6d3bd1", "#cfc6de"  # a ground of its own, so that no theme shines through


def capacity_map(answers: Mapping[str, Mapping[str, Any]]) -> tuple[bytes, str] | None:
    """Return (PNG, alternative text) of what hosts have given and have left, None where no host told; the fullest first."""
    found = [(host, answer["capacity"]) for host, answer in sorted(answers.items()) if "capacity" in answer]
    if not found:
        return None
    found.sort(key=lambda item: -_share(item[1], "memory"))
    shown = found[:MOST_HOSTS]
    figure = Figure(figsize=(8, 1.5 + 0.38 * len(shown)), dpi=110, facecolor=BACKGROUND, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (what, unit, scale) in zip(axes, (("memory", "GiB", GIB), ("vcpus", "vCPUs", 1)), strict=True):
        used = [capacity[f"{what}_used"] / scale for _host, capacity in shown]
        free = [capacity[f"{what}_free"] / scale for _host, capacity in shown]
        rows = range(len(shown))
        axis.barh(rows, used, color=USED, label="given to nodes")
        axis.barh(rows, free, left=used, color=FREE, label="free")
        axis.set_yticks(rows, [host[:30] for host, _capacity in shown])
        axis.set_title(f"{what} ({unit})" if what == "memory" else unit, color=INK, fontsize=10)
        axis.set_facecolor(BACKGROUND)
        axis.tick_params(colors=INK, labelsize=8)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False, labelcolor=INK)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue(), _in_words(found)


def metric_plot(expr: str, lines: Lines, limit: float | None) -> tuple[bytes, str] | None:
    """Return (PNG, alternative text) of what an alert is about over time, with the limit that it crossed; None where there is nothing."""
    shown = sorted(((labels, times, values) for labels, times, values in lines if values), key=lambda line: -max(line[2]))[:MOST_LINES]
    if not shown:
        return None
    figure = Figure(figsize=(8, 3), dpi=110, facecolor=BACKGROUND, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    newest = max(times[-1] for _labels, times, _values in shown)
    for labels, times, values in shown:
        name = ", ".join(value for label, value in labels.items() if label not in ("__name__", "job", "instance"))[:60]
        name = name.replace("$", r"\$")  # which begins a formula
        axes.plot([(when - newest) / 60 for when in times], values, label=name or None, linewidth=1.5)
    if limit is not None:
        axes.axhline(limit, color=INK, linewidth=0.8, linestyle="--")
    axes.set_title(expr[:100], color=INK, fontsize=9, parse_math=False)
    axes.set_facecolor(BACKGROUND)
    axes.tick_params(colors=INK, labelsize=8)
    axes.set_xlabel("minutes", color=INK, fontsize=8)  # before now, in whatever time zone it is looked at
    if any(axes.get_legend_handles_labels()[1]):
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    _labels, _times, values = shown[0]
    crossed = "" if limit is None else f", with a limit of {limit:g}"
    return picture.getvalue(), f"{expr[:100]}: from {values[0]:.3g} to {values[-1]:.3g} within the last hour, at most {max(values):.3g}{crossed}"


def _share(capacity: Mapping[str, Any], what: str) -> float:
    return float(capacity[f"{what}_used"]) / (float(capacity[what]) or 1.0)


def _in_words(found: list[tuple[str, Any]]) -> str:
    lines = [f"{host}: {_share(capacity, 'memory'):.0%} of memory and {_share(capacity, 'vcpus'):.0%} of vCPUs given" for host, capacity in found[:10]]
    return "; ".join(lines) + (f"; and {len(found) - 10} hosts less full" if len(found) > 10 else "")
