# SPDX-License-Identifier: MIT
"""One chart for a reader in a hurry: three operations at 100 tasks, by all rivals.

The same figures give the same bytes of SVG. Matplotlib is asked for only here.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from .bench import OURS
from .figures import Results, spread
from .report import quantity

CASES = {
    "activity": ("operations", "activity, 100 tasks"),
    "create": ("create", "create, 100 tasks, 3,000 sessions"),
    "get miss": ("operations", "get miss, 100 tasks"),
}
COLOR, OTHERS = "#0072b2", "#b8b8b8"  # told apart by everyone, in print too
WIDTH, ROW, MARGIN = 8.0, 0.3, 1.0  # inches
ROOM = 12  # times the longest bar, for its figure
RESOLUTION = 200  # dots an inch, in the PNG


def find_missing() -> str | None:
    """Return what has to be installed to draw, or None."""
    try:
        import_module("matplotlib.figure")
    except ImportError:
        return "matplotlib has to be installed to draw a chart"
    return None


def paths(prefix: Path) -> tuple[Path, Path]:
    """Return the two files."""
    return prefix.with_name(f"{prefix.name}.svg"), prefix.with_name(f"{prefix.name}.png")


def draw(results: Results, prefix: Path) -> None:
    """Write the chart as SVG and as PNG."""
    matplotlib = import_module("matplotlib")
    keys = [
        key
        for key in results.environment["rivals"]
        if any(results.samples(*case, key) for case in CASES.values())
    ]
    settings = {"svg.hashsalt": "sessionstore", "font.family": "DejaVu Sans", "font.size": 8}
    with matplotlib.rc_context(settings):
        size = (WIDTH, MARGIN + ROW * len(keys))
        figure = import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
        for axes, title in zip(figure.subplots(1, len(CASES), sharey=True), CASES, strict=True):
            draw_case(axes, results, title, keys)
        figure.axes[0].set_yticks(range(0, -len(keys), -1), keys)
        figure.supxlabel(caption(results), fontsize=7, color="#555555")
        svg, png = paths(prefix)
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, dpi=RESOLUTION)


def draw_case(axes: Any, results: Results, title: str, keys: list[str]) -> None:
    """Draw a bar for each rival, from the top, with its figure at the end."""
    samples = {row: results.samples(*CASES[title], key) for row, key in enumerate(keys)}
    medians = {row: spread(each).median for row, each in samples.items() if each}
    axes.set_title(f"{title}, 100 tasks:\ncalls a second", loc="left", fontsize=9)
    for row, value in medians.items():
        axes.barh(-row, value, height=0.7, color=COLOR if keys[row] == OURS else OTHERS)
        beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(quantity(value), (value, -row), **beside)
    axes.set_xscale("log")
    if medians:
        axes.set_xlim(min(medians.values()) / 3, max(medians.values()) * ROOM)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False, which="both")


def caption(results: Results) -> str:
    """Return what the reader must know of the figures."""
    environment = results.environment
    return (
        "Medians, on logarithmic scales. Data of 100 bytes; create with synchronous=FULL, the"
        f" others with NORMAL.\n{environment['machine']}; {environment['python']},"
        f" {environment['rivals'][OURS]}"
    )
