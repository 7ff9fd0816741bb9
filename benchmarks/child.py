"""One measured load in a process of its own; prints one line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from .cases import State, expected_part, local_part, make_cases
from .measure import measure
from .systems import Place, make_system


def check(state: State, saved: State) -> None:
    """Compare what was loaded with what was saved, bit by bit."""
    for name, value in state.items():
        here, there = local_part(value), expected_part(name, value, saved)
        if not torch.equal(here.view(torch.uint8), there.view(torch.uint8)):
            raise SystemExit(f"{name} was loaded wrong")


def main() -> None:
    """Load, check, print."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description="One measured load.")
    parser.add_argument("system")
    parser.add_argument("case", choices=make_cases())
    parser.add_argument("path")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    case = make_cases(options.tiny)[options.case]
    state = case.wanted()
    system = make_system(options.system, Place(options.path, options.folder))
    # Unpickling metadata imports this for the first time; a training job has it already.
    import torch.distributed._shard.sharded_tensor  # noqa: F401

    counts: dict[str, int] = {}
    if not options.cold:
        system.open()
        system.warm()

    def load() -> None:
        if options.cold:
            system.open()
        counts.update(system.load(state))

    cost = measure(load)
    if options.system != "floor":
        check(state, case.saved())
    needed = sum(local_part(value).nbytes for value in state.values())
    print(json.dumps({**asdict(cost), **counts, "needed": needed, "pid": os.getpid()}))


if __name__ == "__main__":
    main()
