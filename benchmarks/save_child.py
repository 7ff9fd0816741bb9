"""One measured save in a process of its own; prints one line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from dataclasses import asdict

from .cases import make_cases
from .measure import measure
from .save_systems import Target, make_system


def main() -> None:
    """Save, print."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description="One measured save.")
    parser.add_argument("system")
    parser.add_argument("case", choices=make_cases())
    parser.add_argument("path")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    state = make_cases(options.tiny)[options.case].saved()
    needed = sum(value.nbytes for value in state.values())
    # Saving imports this for the first time; a training job has it already.
    import torch.utils.serialization.config  # noqa: F401

    system = make_system(options.system, Target(options.path, needed))
    system.open()
    system.warm()
    cost = measure(lambda: system.save(state))
    requests = getattr(system, "requests", None)
    print(json.dumps({**asdict(cost), "needed": needed, "requests": requests, "pid": os.getpid()}))


if __name__ == "__main__":
    main()
