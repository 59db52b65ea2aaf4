"""Draw the figures of bench.py: docs/speed.svg and docs/growth.svg, readable on light and on dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from ndtorch._bench import LIMIT, Row

GREY, OURS, THEIRS, BOUND = "#7f7f7f", "#2f81f7", "#b0b7bf", "#e3872d"
LINES = ("#2f81f7", "#e3872d", "#2da44e", "#cf222e", "#8250df", "#bf3989", "#1b7c83", "#9a6700")
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ndtorch",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.transparent": True,
}


def draw(figures: dict[str, Any], folder: Path) -> None:
    """Write both pictures; growth only where it was measured."""
    with mpl.rc_context(STYLE):
        _draw_speed([Row(**row) for row in figures["rows"]], figures["machine"], folder / "speed.svg")
        if figures["growth"]:
            _draw_growth(figures["growth"], figures["machine"], folder / "growth.svg")


def _draw_speed(rows: list[Row], machine: str, path: Path) -> None:
    """How many times as fast as each peer, a bar for each; the limit is a mark."""
    bars = [(row, peer) for row in rows for peer in row.peers if peer != LIMIT]
    figure, axes = plt.subplots(figsize=(9, 0.24 * len(bars) + 1.4))
    labels = []
    for y, (row, peer) in enumerate(bars):
        faster = 1 / row.ratio(peer)
        axes.barh(y, faster, color=OURS if faster >= 1 else THEIRS, height=0.7)
        axes.text(faster * 1.03, y, f"{faster:.0f}x" if faster >= 100 else f"{faster:.2g}x", va="center", fontsize=8)
        if LIMIT in row.peers:
            axes.plot([row.peers[peer] / row.peers[LIMIT]] * 2, [y - 0.45, y + 0.45], color=BOUND, linewidth=2)
        labels.append(f"{row.work}   against {peer}")
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(bars)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(
        f"times as fast (bars: ndtorch, orange marks: two-thread copy into huge pages)\n{machine}", fontsize=7
    )
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _draw_growth(growth: list[dict[str, Any]], machine: str, path: Path) -> None:
    threads = sorted({one["threads"] for one in growth})
    figure, panels = plt.subplots(1, len(threads), figsize=(9, 3.8), sharey=True, squeeze=False)
    names = list(dict.fromkeys(one["work"] for one in growth))
    for axes, count in zip(panels[0], threads, strict=True):
        for name, color in zip(names, LINES, strict=False):
            rows = [_row(one) for one in growth if (one["threads"], one["work"]) == (count, name)]
            ratios = [row.ratio(row.best_peer) for row in rows]
            axes.plot([row.nbytes for row in rows], ratios, marker="o", markersize=3, color=color, label=name)
        axes.axhline(1, color=GREY, linewidth=0.8)
        axes.axhline(1.1, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks([64, 4 << 10, 1 << 20, 64 << 20, 1 << 30], ["64 B", "4 KiB", "1 MiB", "64 MiB", "1 GiB"])
        axes.set_yticks([0.05, 0.1, 0.25, 0.5, 1, 1.5], ["0.05", "0.1", "0.25", "0.5", "1", "1.5"])
        axes.minorticks_off()
        axes.set_title(f"{count} thread{'s' * (count > 1)}", fontsize=9)
    panels[0][0].set_ylabel("time over that of the fastest peer")
    handles, labels = panels[0][0].get_legend_handles_labels()
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.0), "bbox_transform": figure.transFigure}
    figure.legend(handles, labels, ncols=4, frameon=False, fontsize=8, **place)
    figure.text(0.5, -0.04, machine, ha="center", fontsize=7)
    figure.subplots_adjust(bottom=0.24)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _row(one: dict[str, Any]) -> Row:
    return Row(**{name: value for name, value in one.items() if name != "threads"})
