"""S3: mutated ``.metadata``: loaded and valid, or a typed error; memory stays bounded.

Real metadata of several kinds is changed at random: bits, bytes, cuts, copies, lengths. Half of
the samples get a right checksum afterwards, so that the unpickler is reached.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import tracemalloc
from typing import Any

from .report import Report
from .report import main as report_main

RUNS = 10_000
_EXTRA = 64 * 2**20
# The backstop: what a sample may take of address space beyond what is there.
_LIMIT = 4 * 2**30


def _originals() -> list[bytes]:
    import torch
    import torch.distributed.checkpoint as dcp

    from torch_s3dcp import S3StorageWriter
    from torch_s3dcp.transports import MemoryTransport

    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(8)).sum().backward()
    optimizer.step()
    states: list[dict[str, Any]] = [
        {"x": torch.ones(2)},
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3},
        {"deep": [{"a": [torch.ones(1), 2, "x"]}, (1, 2)], "blob": b"x" * 100},
        {f"layer.{n}.weight": torch.ones(n % 5, 2) for n in range(200)},
    ]
    found = []
    for state in states:
        store = MemoryTransport("bucket")
        writer = S3StorageWriter("s3://bucket/run", transport=store)
        dcp.save(state, storage_writer=writer, no_dist=True)
        with store.get("bucket", "run/.metadata") as body:
            found.append(body.readall())
    return found


def _mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place = rng.randrange(len(changed)) if changed else 0
        kind = rng.randrange(9)
        if not changed:
            break
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place] = rng.randrange(256)
        elif kind == 2:
            changed[place:place] = rng.randbytes(rng.randint(1, 8))
        elif kind == 3:
            del changed[place : place + rng.randint(1, 16)]
        elif kind == 4:
            other = rng.randrange(len(changed))
            changed[place:place] = changed[other : other + rng.randint(1, 64)]
        elif kind == 5:
            # Opcodes, where there was something else.
            changed[place] = rng.choice(b"()NRbcio0129aest}]lduhjqrpgGIJKMLFXTUSVBCQP\x81\x85\x93")
        elif kind == 6:
            changed[place : place + 4] = rng.choice((2**31 - 1, 2**32 - 1, 2**24)).to_bytes(
                4, "little"
            )
        elif kind == 7:
            changed[place : place + 8] = (2 ** rng.randint(30, 63)).to_bytes(8, "little")
        else:
            del changed[place:]
    return bytes(changed)


def _outcome(data: bytes) -> tuple[str, str | None]:
    """How a sample ends, and what is wrong with that."""
    from torch_s3dcp import S3DCPError
    from torch_s3dcp.checkpoint_metadata import load_metadata, stored_item

    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    wrong = None
    try:
        metadata = load_metadata(data)
        for info in metadata.storage_data.values():
            parts = stored_item(info).path.split("/")
            if ".." in parts or not parts[0]:
                wrong = f"a path outside: {info}"
        said = "loaded"
    except S3DCPError as error:
        said = type(error).__name__
    except BaseException as error:  # noqa: BLE001 - that is what must not happen
        said, wrong = "untyped", repr(error)
    peak = tracemalloc.get_traced_memory()[1] - before
    if peak > 2 * len(data) + _EXTRA:
        wrong = f"{peak} bytes for {len(data)}"
    return said, wrong


def run(seed: int, runs: int) -> Report:
    """Mutate ``runs`` times, from ``seed``."""
    report = Report("mutated metadata", "S3", seed)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        # In a child: a limit of memory stays with its process, and a crash is an outcome.
        try:
            _limit()
            with os.fdopen(send, "w") as out:
                _run(seed, runs, report)
                out.write(repr((report.runs, dict(report.outcomes), report.violations)))
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    if said:
        import ast

        report.runs, outcomes, report.violations = ast.literal_eval(said)
        report.outcomes.update(outcomes)
    else:
        report.violations.append("the process died")
    return report


def _limit() -> None:
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + _LIMIT, now + _LIMIT))


def _run(seed: int, runs: int, report: Report) -> None:
    from torch_s3dcp.checkpoint_metadata import SEAL_SIZE, sealed

    originals = _originals()
    tracemalloc.start()
    for number in range(runs):
        rng = random.Random(f"{seed}-{number}")
        data = rng.choice(originals)
        # The pickle alone, sealed again; or all of it, in which damage is noticed at once.
        data = sealed(_mutated(data[:-SEAL_SIZE], rng)) if number % 2 else _mutated(data, rng)
        said, wrong = _outcome(data)
        report.add(said)
        if wrong is not None:
            report.violations.append(f"run {number}: {wrong}")
    tracemalloc.stop()


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    return report_main(run, RUNS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
