"""Medians of runs, as rows of a table."""

from __future__ import annotations

import statistics
from typing import Any

GB = 1e9


def median_row(system: str, runs: list[dict[str, Any]], moved: str = "read") -> dict[str, Any]:
    """Medians of the runs of one system; requests and bytes are those of the first.

    ``moved``: what the runs call the bytes that went over the network.
    """
    needed = runs[0]["needed"]
    medians = {n: statistics.median(r[n] for r in runs) for n in ("wall", "cpu", "extra_peak")}
    count = runs[0].get(moved)
    return {
        "system": system,
        "seconds": medians["wall"],
        "gb_per_s": needed / GB / medians["wall"],
        "cpu_s_per_gb": medians["cpu"] / (needed / GB),
        "requests": runs[0].get("requests"),
        f"{moved}_over_needed": None if count is None else count / needed,
        "extra_peak_mib": medians["extra_peak"] / 2**20,
    }


def show(rows: list[dict[str, Any]], title: str, moved: str = "read") -> None:
    """The table for people."""
    print(f"\n{title}\n")
    print(
        f"{'system':<32}{'seconds':>9}{'GB/s':>8}{'CPU-s/GB':>10}{'requests':>10}"
        f"{moved + '/needed':>13}{'+MiB':>8}"
    )
    for row in rows:
        ratio = row[f"{moved}_over_needed"]
        print(
            f"{row['system']:<32}{row['seconds']:>9.2f}{row['gb_per_s']:>8.3f}"
            f"{row['cpu_s_per_gb']:>10.2f}{row['requests'] or '-':>10}"
            f"{'-' if ratio is None else f'{ratio:.4f}':>13}{row['extra_peak_mib']:>8.0f}"
        )
    print(flush=True)
