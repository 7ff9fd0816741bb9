"""Save a whole model: this package, other packages, files in memory, and raw sockets.

Each save runs in a process and environment of its own, out of memory that was touched before,
and to a new place, where it is checked. Systems take turns; the tables show medians.

    python -m benchmarks.save --server sink --rounds 3 --json results.json
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import make_cases
from .commands import installed, memory_folder, module_for, pick, torch_version, write_json
from .measure import machine, run_json
from .save_places import SERVERS, Folders, Places, open_places
from .tables import GB, median_row, show

CASES = ("full", "small")
_OURS = ("ours", "ours:4")
_PEERS = ("s3torchconnector:1", "s3torchconnector:4", "s3torchconnector:8", "fsspec")
_SENT = "sent"
Runs = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Setting:
    """One table: a case, the server, and how often it is saved."""

    case: str
    server: str
    rounds: int = 3
    tiny: bool = False

    def title(self, needed: int) -> str:
        """What the figures of this table are of."""
        return f"{self.case}: {needed / GB:.2f} GB to {self.server}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print."""
    run_tables(__doc__, arguments, [*_OURS, *installed(_PEERS), "filesystem", "floor"], compare)


def run_tables(
    about: str | None,
    arguments: Sequence[str] | None,
    known: Sequence[str],
    table: Callable[[Setting, Sequence[str], Places, Places], dict[str, Any]],
) -> None:
    """The command that makes a ``table`` of each case, with systems that are ``known``."""
    options = _parser(about).parse_args(arguments)
    systems = chosen_systems(options.systems, options.server, known)
    tables = []
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        folder = Path(name)
        with open_places(options.server, folder) as places:
            for case in options.case:
                setting = Setting(case, options.server, options.rounds, options.tiny)
                tables.append(table(setting, systems, places, Folders(folder)))
    write_json(options.json, tables)


def _parser(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(about or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--case", nargs="+", choices=CASES, default=["full"], metavar="CASE", help="cases")
    add("--server", choices=SERVERS, default="seaweed", help="where saves go")
    add("--rounds", type=int, default=3, help="runs of each system")
    add("--systems", nargs="+", metavar="NAME", help="such as ours fsspec s3torchconnector:4")
    add("--tiny", action="store_true", help="hardly any data: only to see that all works")
    add("--json", type=Path, metavar="FILE", help="also write all results to this file")
    return parser


def chosen_systems(wanted: Sequence[str] | None, server: str, known: Sequence[str]) -> list[str]:
    """The known systems of these names that can save to the server; None: all of them."""
    chosen = pick(wanted, known)
    if server != "seaweed" and "fsspec" in chosen:
        print(f"left out: fsspec, which needs listings that {server} does not have")
        chosen.remove("fsspec")
    return chosen


def compare(
    setting: Setting, systems: Sequence[str], places: Places, folders: Places
) -> dict[str, Any]:
    """Let the systems take turns; the table with its runs."""
    results = take_turns(setting, systems, places, folders, "benchmarks.save_child", "wall")
    rows = [median_row(system, runs, _SENT) for system, runs in results.items()]
    title = setting.title(needed_in(results))
    show(rows, heading(title, setting), _SENT)
    return {"title": title, "setting": vars(setting), "rows": rows, "runs": results}


def heading(title: str, setting: Setting) -> str:
    """What stands above a table."""
    about = f"medians of {setting.rounds}\nmachine {machine()}, torch {torch_version()}"
    return f"{title}; {about}"


def needed_in(results: Runs) -> int:
    """The bytes of the state that was saved."""
    needed: int = next(iter(results.values()))[0]["needed"]
    return needed


def take_turns(
    setting: Setting,
    systems: Sequence[str],
    places: Places,
    folders: Places,
    module: str,
    seconds: str,
) -> Runs:
    """The runs of each system, in the order of the rounds; ``seconds``: the figure to print."""
    results: Runs = {system: [] for system in systems}
    for number, system in itertools.product(range(setting.rounds), systems):
        run = run_child(system, setting, folders if system == "filesystem" else places, module)
        results[system].append(run)
        print(f"round {number + 1}/{setting.rounds} {system}: {run[seconds]:.2f} s", flush=True)
    return results


def run_child(system: str, setting: Setting, places: Places, module: str) -> dict[str, Any]:
    """One save in a fresh process, to a new place, which is gone afterwards."""
    command = module_for(system, module)
    command += [system, setting.case, places.new(), *["--tiny"] * setting.tiny]
    run = run_json(system, command, places.environment)
    if system != "floor":
        run[_SENT] = places.check(make_cases(setting.tiny)[setting.case])
    places.remove()
    return run


if __name__ == "__main__":
    main()
