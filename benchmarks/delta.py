"""Fine-tuning with 90 % of the parameters frozen: full saves and delta saves of the same state.

Of the model (1.5 GB; see cases.py) about a tenth of the bytes changes: its last tensors, or every
tenth one. The saves take turns, each to a new place, where PyTorch alone loads and compares it.

    python -m benchmarks.delta --rounds 3 --json results.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict_saver import save

from torch_s3dcp import S3ClientConfig, S3Credentials, S3StorageWriter
from torch_s3dcp.testing.servers import SeaweedServer

from .cases import Case, State, blank, make_cases, noise
from .commands import memory_folder, torch_version, write_json
from .measure import machine, measure
from .save_places import Seaweed
from .tables import GB

CHANGES = ("last", "scattered")
_TINY = 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print."""
    warnings.simplefilter("ignore")
    options = _parser().parse_args(arguments)
    first = _first_state(options.tiny)
    tables = []
    with (
        tempfile.TemporaryDirectory(dir=memory_folder()) as name,
        SeaweedServer(Path(name) / "seaweed") as server,
    ):
        places = Seaweed(server, Path(name))
        config = S3ClientConfig(
            endpoint_url=server.endpoint_url,
            credentials=S3Credentials(server.access_key, server.secret_key),
            force_path_style=True,
        )
        for change in options.changes:
            runs = _take_turns(first, _second_state(first, change), places, config, options.rounds)
            tables.append({"title": change, "runs": runs})
            _show(change, runs)
    write_json(options.json, tables)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--changes", nargs="+", choices=CHANGES, default=list(CHANGES), help="what changes")
    add("--rounds", type=int, default=3, help="runs of each kind")
    add("--tiny", action="store_true", help="hardly any data: only to see that all works")
    add("--json", type=Path, metavar="FILE", help="also write all results to this file")
    return parser


def _first_state(tiny: bool) -> State:
    if tiny:
        return {f"tensor.{n:02}": noise((1024, 512), n) for n in range(_TINY)}
    return make_cases()["full"].saved()


def _second_state(first: State, change: str) -> State:
    """The same with about a tenth of the bytes changed."""
    names = list(first)
    if change == "scattered":
        changed = set(names[9::10])
    else:
        total, size = sum(value.nbytes for value in first.values()), 0
        changed = set()
        for name in reversed(names):
            if size + first[name].nbytes <= 0.1 * total:
                changed.add(name)
                size += first[name].nbytes
    return {n: value + 1 if n in changed else value for n, value in first.items()}


def _take_turns(
    first: State, second: State, places: Seaweed, config: S3ClientConfig, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    earlier = places.new()
    save(first, storage_writer=S3StorageWriter(earlier, None, config), no_dist=True)
    case = Case(
        lambda: second,
        lambda: {name: blank(tuple(v.shape), v.dtype) for name, v in second.items()},
    )
    runs: dict[str, list[dict[str, Any]]] = {"full": [], "delta": []}
    for number in range(rounds):
        for kind, base in (("full", None), ("delta", earlier)):
            writer = S3StorageWriter(places.new(), None, config, delta_from=base)
            cost = measure(lambda: save(second, storage_writer=writer, no_dist=True))  # noqa: B023
            assert writer.stats is not None
            places.check(case)
            places.remove()
            needed = sum(value.nbytes for value in second.values())
            figures = {**asdict(cost), **asdict(writer.stats), "needed": needed}
            figures["bytes_uploaded"] = writer.stats.bytes_uploaded
            runs[kind].append(figures)
            print(f"round {number + 1}/{rounds} {kind}: {cost.wall:.2f} s", flush=True)
    return runs


def _show(change: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    needed = runs["full"][0]["needed"]
    print(f"\n{change}: {needed / GB:.2f} GB to seaweed; medians of {len(runs['full'])}")
    print(f"machine {machine()}, torch {torch_version()}\n")
    print(
        f"{'save':<8}{'seconds':>9}{'CPU-s/GB':>10}{'uploaded/full':>15}{'requests':>10}{'+MiB':>8}"
    )
    whole = runs["full"][0]["bytes_uploaded"]
    for kind, found in runs.items():
        wall, cpu, peak = (
            statistics.median(run[name] for run in found) for name in ("wall", "cpu", "extra_peak")
        )
        print(
            f"{kind:<8}{wall:>9.2f}{cpu / (needed / GB):>10.2f}"
            f"{found[0]['bytes_uploaded'] / whole:>15.4f}{found[0]['data_requests']:>10}"
            f"{peak / 2**20:>8.0f}"
        )
    print(flush=True)


if __name__ == "__main__":
    main()
