"""Compare clients that could receive the bodies of GETs.

Each receives the same object, in ranges of 32 MiB, 8 at once, into memory that was touched
before. Candidates take turns; the tables, in Markdown, show medians.

    python -m benchmarks.transports --server static https seaweed --rounds 5 --json results.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from .commands import PEERS, memory_folder
from .measure import machine, run_json
from .servers import BUCKET, PREFIX, SERVERS, serve
from .tables import GB
from .transport_candidates import CANDIDATES, PART

SIZE = 24 * PART
TINY = 2**20 + 1
NAME = "object"


def interpreter(candidate: str) -> str | None:
    """The first interpreter that has the package of a candidate: this one, that of the peers."""
    package = candidate.split(":")[0]
    needs_one = package in ("awscrt", "obstore")
    for python in (sys.executable, PEERS):
        if not needs_one or _imports(python, package):
            return python
    return None


@cache
def _imports(python: str, package: str) -> bool:
    if not Path(python).exists():
        return False
    command = [python, "-c", f"import {package}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run_candidate(
    name: str, python: str, folder: Path, environment: dict[str, str]
) -> dict[str, float]:
    """One run in a fresh process."""
    file = folder / BUCKET / PREFIX / NAME
    command = [python, "-W", "ignore", "-m", "benchmarks.transport_candidates"]
    command += [name, BUCKET, f"{PREFIX}/{NAME}", str(file)]
    return run_json(name, command, environment)


def compare(
    server: str, candidates: dict[str, str], rounds: int, size: int
) -> dict[str, list[dict[str, float]]]:
    """All runs of all candidates, with one server and an object of ``size`` bytes, in turns."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as path:
        folder = Path(path)
        file = folder / BUCKET / PREFIX / NAME
        file.parent.mkdir(parents=True)
        file.write_bytes(os.urandom(size))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
        with serve(server, folder) as environment:
            # Some clients would take a proxy from the environment even for this machine.
            environment = {**environment, "NO_PROXY": "127.0.0.1"}
            for number in range(rounds):
                for name, python in candidates.items():
                    runs[name].append(run_candidate(name, python, folder, environment))
                    wall = runs[name][-1]["wall"]
                    print(f"{server} {number + 1}/{rounds} {name}: {wall:.2f} s", file=sys.stderr)
    return runs


def row(name: str, runs: list[dict[str, float]], size: int) -> dict[str, Any]:
    """Medians of the runs of one candidate that received ``size`` bytes."""
    medians = {n: statistics.median(run[n] for run in runs) for n in runs[0]}
    return {
        "candidate": name,
        "gb_per_s": size / GB / medians["wall"],
        "cpu_s_per_gb": medians["cpu"] / (size / GB),
        "extra_peak_mib": medians["extra_peak"] / 2**20,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| client | GB/s | CPU-s/GB | +MiB |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{r['candidate']}` | {r['gb_per_s']:.2f} | {r['cpu_s_per_gb']:.2f} "
        f"| {r['extra_peak_mib']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", choices=SERVERS, nargs="+", default=list(SERVERS))
    parser.add_argument("--rounds", type=int, default=3, help="runs of each candidate")
    parser.add_argument("--candidates", choices=CANDIDATES, nargs="+", default=list(CANDIDATES))
    parser.add_argument("--tiny", action="store_true", help="hardly any data: to try the command")
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    options = parser.parse_args()
    found: dict[str, str] = {}
    for name in options.candidates:
        python = interpreter(name)
        if python is None:
            print(f"left out: {name}, whose package is not installed (`make peers` does)")
        else:
            found[name] = python
    size = TINY if options.tiny else SIZE
    answer: dict[str, Any] = {"machine": machine(), "bytes": size}
    for server in options.server:
        runs = compare(server, found, options.rounds, size)
        rows = [row(name, of_one, size) for name, of_one in runs.items()]
        answer[server] = {"rows": rows, "runs": runs}
        print(f"\n{server}, {size / GB:.2f} GB, medians of {options.rounds}\n\n{table(rows)}")
    print(f"\nmachine {machine()}")
    if options.json:
        options.json.write_text(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
