"""Save in the background: how long training stands still, and what it notices of the upload.

Each ``dcp.async_save`` runs in a process and environment of its own, after another one that
warms up. A thread that sleeps 1 ms stands for training: it is stalled while others hold the
interpreter lock. Systems take turns; the tables show medians.

    python -m benchmarks.async_save --server sink --rounds 3 --json results.json
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .commands import installed
from .save import Setting, heading, needed_in, run_tables, take_turns
from .save_places import Places

_OURS = ("ours", "ours:kept", "ours:kept+nogc", "ours:process")
_PEERS = ("s3torchconnector:1", "s3torchconnector:4", "fsspec")
_CONTROLS = ("idle", "busy")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print."""
    run_tables(__doc__, arguments, [*_OURS, *installed(_PEERS), "filesystem"], compare)


def compare(
    setting: Setting, systems: Sequence[str], places: Places, folders: Places
) -> dict[str, Any]:
    """Let the systems take turns; the table with its runs."""
    results = take_turns(setting, systems, places, folders, "benchmarks.async_child", "done")
    rows = [_row(system, runs, "ticks") for system, runs in results.items()]
    every = [run for runs in results.values() for run in runs]
    rows += [_row(name, every, name) for name in _CONTROLS]
    title = setting.title(needed_in(results))
    _show(rows, heading(title, setting))
    return {"title": title, "setting": vars(setting), "rows": rows, "runs": results}


def _row(name: str, runs: list[dict[str, Any]], ticks: str) -> dict[str, Any]:
    """Medians of the runs; of controls, which save nothing, those of their ticks alone."""
    times = () if ticks in _CONTROLS else ("blocked", "done")
    return {
        "system": name,
        **{time: statistics.median(run[time] for run in runs) for time in times},
        **{
            figure: statistics.median(run[ticks][figure] for run in runs)
            for figure in runs[0][ticks]
        },
    }


def _show(rows: list[dict[str, Any]], title: str) -> None:
    """The table for people."""
    print(f"\n{title}\n")
    figures = [f"{kind}_{figure}" for kind in ("late", "stall") for figure in ("p50", "p99", "max")]
    names = "".join(f"{figure.replace('_', ' '):>11}" for figure in figures)
    print(f"{'system':<20}{'blocked s':>11}{'done s':>8}{names}{'stalled %':>11}")
    for row in rows:
        times = "".join(
            f"{row[time]:>{width}.2f}" if time in row else f"{'-':>{width}}"
            for time, width in (("blocked", 11), ("done", 8))
        )
        values = "".join(f"{row[figure]:>11.2f}" for figure in figures)
        print(f"{row['system']:<20}{times}{values}{row['stalled_share'] * 100:>11.1f}")
    print("late, stall: ms; stall: waiting for the interpreter lock while others ran\n", flush=True)


if __name__ == "__main__":
    main()
