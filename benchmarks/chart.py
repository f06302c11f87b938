# SPDX-License-Identifier: MIT
"""One chart for a reader in a hurry: up to three operations at 100 tasks, by all rivals.

The same figures give the same bytes of SVG. Matplotlib is imported only here.
"""

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .bench import OURS
from .figures import Results
from .report import quantity

CASES = {
    "activity": ("operations", "activity, 100 tasks"),
    "create": ("create", "create, 100 tasks, 3,000 sessions"),
    "get miss": ("operations", "get miss, 100 tasks"),
}
COLOR, OTHERS = "#0072b2", "#b8b8b8"  # told apart by everyone, in print too
WIDTH, ROW, MARGIN = 8.0, 0.3, 1.0  # inches
ROOM = 12  # times the longest bar, for its figure
RULES = "Medians, on logarithmic scales. Create with synchronous=FULL, the others with NORMAL.\n"


def draw(results: Results, prefix: Path) -> None:
    """Write the chart as PREFIX.svg and PREFIX.png."""
    environment = results.environment
    rivals = list(environment["rivals"])
    cases = [title for title in CASES if results.samples(*CASES[title], OURS)] or [*CASES]
    caption = f"{RULES}{environment['machine']}; {environment['python']}"
    settings = {"svg.hashsalt": "sessionstore", "font.family": "DejaVu Sans", "font.size": 8}
    with mpl.rc_context(settings):
        size = (WIDTH, MARGIN + ROW * len(rivals))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
        for axes, title in zip(panels, cases, strict=True):
            draw_case(axes, results, title, rivals)
        figure.axes[0].set_yticks(range(0, -len(rivals), -1), rivals)
        figure.supxlabel(caption, fontsize=7, color="#555555")
        figure.savefig(prefix.with_name(f"{prefix.name}.svg"), metadata={"Date": None})
        figure.savefig(prefix.with_name(f"{prefix.name}.png"), dpi=200)


def draw_case(axes: Any, results: Results, title: str, rivals: list[str]) -> None:
    """Draw a bar for each rival, from the top, with its figure at the end."""
    samples = {row: results.samples(*CASES[title], key) for row, key in enumerate(rivals)}
    medians = {row: median(each) for row, each in samples.items() if each}
    axes.set_title(f"{title}, 100 tasks:\ncalls a second", loc="left", fontsize=9)
    for row, value in medians.items():
        axes.barh(-row, value, height=0.7, color=COLOR if rivals[row] == OURS else OTHERS)
        beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(quantity(value), (value, -row), **beside)
    axes.set_xscale("log")
    if medians:
        axes.set_xlim(min(medians.values()) / 3, max(medians.values()) * ROOM)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False, which="both")
