# SPDX-License-Identifier: MIT
"""One chart for a reader in a hurry: three operations at 100 tasks, by all rivals.

The same figures give the same bytes of SVG. Matplotlib is asked for only here.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from .measure import Results, spread
from .report import number

CASES = ("activity, 100 tasks", "create, 100 tasks", "get miss, 100 tasks")
OURS, OTHERS = "#0072b2", "#b8b8b8"  # told apart by everyone, in print too
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


def paths(prefix: Path) -> list[Path]:
    """Return the two files; the prefix may be the name of either."""
    stem = prefix.with_suffix("") if prefix.suffix in (".svg", ".png") else prefix
    return [stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")]


def draw(results: Results, prefix: Path) -> None:
    """Write the chart as SVG and as PNG."""
    matplotlib = import_module("matplotlib")
    names = rivals(results)
    settings = {"svg.hashsalt": "sessionstore", "font.family": "DejaVu Sans", "font.size": 8}
    with matplotlib.rc_context(settings):
        size = (WIDTH, MARGIN + ROW * len(names))
        figure = import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
        for axes, case in zip(figure.subplots(1, len(CASES), sharey=True), CASES, strict=True):
            draw_case(axes, results, case, list(names))
        figure.axes[0].set_yticks(range(0, -len(names), -1), list(names.values()))
        figure.axes[0].get_yticklabels()[0].set_fontweight("bold")
        figure.supxlabel(caption(results), fontsize=7, color="#555555")
        svg, png = paths(prefix)
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, dpi=RESOLUTION)


def rivals(results: Results) -> dict[str, str]:
    """Return the names of the rivals that the chart has something of, in two lines if long."""
    names = {
        key: described.partition(":")[0].replace(", ", ",\n", 1)
        for key, described in results.environment["rivals"].items()
    }
    return {
        key: name
        for key, name in names.items()
        if any(results.find("operations", case, key) for case in CASES)
    }


def draw_case(axes: Any, results: Results, case: str, keys: list[str]) -> None:
    """Draw a bar for each rival, from the top, with its figure at the end."""
    figures = {row: results.find("operations", case, key) for row, key in enumerate(keys)}
    medians = {row: spread(figure.samples).median for row, figure in figures.items() if figure}
    axes.set_title(f"{case}:\ncalls a second", loc="left", fontsize=9)
    for row, median in medians.items():
        axes.barh(-row, median, height=0.7, color=OTHERS if row else OURS)
        beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(number(median), (median, -row), **beside)
    axes.set_xscale("log")
    if medians:
        axes.set_xlim(min(medians.values()) / 3, max(medians.values()) * ROOM)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False, which="both")


def caption(results: Results) -> str:
    """Return what the reader must know of the figures."""
    environment = results.environment
    versions = environment["rivals"]["sessionstore"].partition(": ")[2]
    return (
        "Medians, on logarithmic scales. Data of 100 bytes; create with synchronous=FULL, the"
        f" others with NORMAL.\n{environment['machine']}; {environment['python']}, {versions}"
    )
