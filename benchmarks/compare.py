"""Compare loads side by side: the machinery behind `load`, `latency` and the others.

Each load runs in a process and environment of its own, into memory that was touched before,
and is compared with what was saved. Systems take turns; the tables show medians.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_s3dcp import available_readers

from .cases import make_cases
from .checkpoints import write_checkpoint
from .commands import (
    installed,
    memory_folder,
    module_for,
    pick,
    torch_version,
    write_json,
)
from .measure import machine, run_json
from .servers import BUCKET, PREFIX, SERVERS, serve
from .tables import GB, median_row, show

_PEERS = (
    "s3torchconnector:dcp_optimized",
    "s3torchconnector:range_based",
    "s3torchconnector:sequential",
    "fsspec",
)


@dataclass(frozen=True)
class Setting:
    """One table: a case, the server, and what each child is told."""

    case: str
    server: str
    delay: float = 0.0
    bandwidth: float = 0.0
    rounds: int = 3
    cold: bool = False
    tiny: bool = False
    writer: str = "torch"

    def title(self, needed: int) -> str:
        """What the figures of this table are of."""
        parts = [f"{self.case}: {needed / GB:.2f} GB from {self.server}"]
        if self.delay:
            parts.append(f"{self.delay * 1000:g} ms more per request")
        if self.bandwidth:
            parts.append(f"{self.bandwidth / 1e6:g} MB/s for each connection")
        if self.writer != "torch":
            parts.append(f"saved by {self.writer}")
        if self.cold:
            parts.append("cold")
        return ", ".join(parts)


def main(about: str | None, arguments: Sequence[str] | None = None, /, **defaults: Any) -> None:
    """Parse the command line, run, print.

    about: what the command says of itself, usually the docstring of its module.
    arguments: the command line; None: that of the process.
    defaults: options with another default than the one given here.
    """
    options = parser_of(about, defaults).parse_args(arguments)
    if options.server == "seaweed" and (any(options.delay) or any(options.bandwidth)):
        raise SystemExit("--delay and --bandwidth need --server static or https")
    systems = chosen_systems(options.systems)
    tables = []
    for case in options.case:
        with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
            folder = Path(name)
            write_checkpoint(
                case, folder / BUCKET / PREFIX, tiny=options.tiny, writer=options.writer
            )
            for delay, bandwidth in itertools.product(options.delay, options.bandwidth):
                setting = Setting(
                    case,
                    options.server,
                    delay,
                    bandwidth,
                    options.rounds,
                    options.cold,
                    options.tiny,
                    options.writer,
                )
                tables.append(compare(setting, systems, folder))
    write_json(options.json, tables)


def parser_of(about: str | None, defaults: dict[str, Any]) -> argparse.ArgumentParser:
    """The command line that all these commands share."""
    parser = argparse.ArgumentParser(
        description=(about or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    many: dict[str, Any] = {"nargs": "+", "metavar": "N"}
    add = parser.add_argument
    add("--case", nargs="+", choices=make_cases(), default=["full"], metavar="CASE", help="cases")
    add("--server", choices=SERVERS, default="seaweed", help="where the checkpoint lies")
    add("--delay", type=float, default=[0.0], help="seconds before each answer", **many)
    add("--bandwidth", type=float, default=[0.0], help="bytes/s of each connection", **many)
    add("--rounds", type=int, default=3, help="runs of each system")
    add("--writer", choices=("torch", "ours"), default="torch", help="who saves the checkpoint")
    add("--systems", nargs="+", metavar="NAME", help="such as ours:direct fsspec; ours: all of it")
    add("--cold", action="store_true", help="make clients and connections within the clock")
    add("--tiny", action="store_true", help="hardly any data: only to see that all works")
    add("--json", type=Path, metavar="FILE", help="also write all results to this file")
    parser.set_defaults(**defaults)
    return parser


def chosen_systems(wanted: Sequence[str] | None) -> list[str]:
    """The systems of these names, where ``ours`` stands for all of ours; None: all there are."""
    ours = [f"ours:{name}" for name in available_readers()]
    return pick(wanted, [*ours, *installed(_PEERS), "filesystem", "floor"])


def compare(setting: Setting, systems: Sequence[str], folder: Path) -> dict[str, Any]:
    """Start the server and let the systems take turns; the table with its runs."""
    results: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
    with serve(setting.server, folder, setting.delay, setting.bandwidth) as environment:
        for number, system in itertools.product(range(setting.rounds), systems):
            run = run_child(system, setting, folder, environment)
            results[system].append(run)
            print(f"round {number + 1}/{setting.rounds} {system}: {run['wall']:.2f} s", flush=True)
    rows = [median_row(system, runs) for system, runs in results.items()]
    needed = next(iter(results.values()))[0]["needed"]
    title = setting.title(needed)
    show(
        rows, f"{title}; medians of {setting.rounds}\nmachine {machine()}, torch {torch_version()}"
    )
    return {"title": title, "setting": vars(setting), "rows": rows, "runs": results}


def run_child(
    system: str, setting: Setting, folder: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """One load in a fresh process."""
    command = module_for(system, "benchmarks.child")
    command += [system, setting.case, f"s3://{BUCKET}/{PREFIX}", str(folder / BUCKET / PREFIX)]
    command += ["--tiny"] * setting.tiny + ["--cold"] * setting.cold
    return run_json(system, command, environment)
