"""Draw results: bars for each system, a row of axes for each table.

    python -m benchmarks.plot docs/images/load.svg static.json seaweed.json

The same results give the same file, byte by byte.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = {
    "gb_per_s": ("GB/s", "more is better"),
    "cpu_s_per_gb": ("CPU-s/GB", "less is better"),
    "seconds": ("seconds", "less is better"),
    "extra_peak_mib": ("MiB of memory above the start", "less is better"),
}
# Told apart by lightness as well as by hue (Okabe and Ito's blue).
OURS = "#0072B2"
OTHERS = "#9A9A9A"
NOT_S3 = "#D9D9D9"
_BAR_INCHES = 0.27


def draw(tables: list[dict[str, Any]], columns: list[str], file: Path) -> None:
    """Draw tables into an SVG file, one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    # Text stays text, and names within the file come from this word, not from chance.
    matplotlib.rcParams.update({"svg.hashsalt": "torch_s3dcp", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    counts = [len(table["rows"]) for table in tables]
    figure, grid = plt.subplots(
        len(tables),
        len(columns),
        figsize=(2.6 + 3.2 * len(columns), sum(_BAR_INCHES * count + 0.9 for count in counts)),
        gridspec_kw={"height_ratios": counts},
        squeeze=False,
        layout="constrained",
    )
    for row_of_axes, table in zip(grid, tables, strict=True):
        for number, (axes, column) in enumerate(zip(row_of_axes, columns, strict=True)):
            _bars(axes, table["rows"], column, named=number == 0)
        row_of_axes[0].set_title(table["title"], loc="left", fontsize=10, fontweight="bold")
    file.parent.mkdir(parents=True, exist_ok=True)
    nothing = {"Date": None, "Creator": None}
    figure.savefig(file, format="svg", metadata=nothing)
    plt.close(figure)


def _bars(axes: Axes, rows: list[dict[str, Any]], column: str, *, named: bool) -> None:
    systems = [row["system"] for row in rows]
    values = [row[column] for row in rows]
    bars = axes.barh(systems, values, color=[_colour(system) for system in systems], height=0.72)
    digits = 0 if max(values) >= 100 else 2
    axes.bar_label(bars, labels=[f"{v:.{digits}f}" for v in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.18)
    axes.set_xlabel(", ".join(COLUMNS[column]), fontsize=8)
    axes.tick_params(labelsize=8, left=False, labelleft=named)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith("ours") else "normal")


def _colour(system: str) -> str:
    kind = system.partition(":")[0]
    return {"ours": OURS, "filesystem": NOT_S3, "floor": NOT_S3}.get(kind, OTHERS)


def main() -> None:
    """Parse the command line, read, draw."""
    parser = argparse.ArgumentParser(description="Draw results that --json has written.")
    parser.add_argument("svg", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    default = ["gb_per_s", "cpu_s_per_gb"]
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=default)
    options = parser.parse_args()
    tables = [table for file in options.results for table in json.loads(file.read_text())["tables"]]
    draw(tables, options.columns, options.svg)


if __name__ == "__main__":
    main()
