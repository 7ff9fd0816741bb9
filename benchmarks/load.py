"""Load a checkpoint of a transformer in bfloat16 with each reader from SeaweedFS.

Each load runs in a process of its own into tensors that are allocated and touched before,
and is compared with what was saved. Readers take turns; the table shows medians.

    python -m benchmarks.load --rounds 3 --json results.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch_s3dcp.testing.wrappers import RecordingTransport

from examples.transformer import MEDIUM, SMALL, make_model
from torch_s3dcp import S3StorageReader, S3StorageWriter, available_readers
from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import BotoTransport

from .measure import machine, measure

BUCKET = "bench"
CHECKPOINT = f"s3://{BUCKET}/model"
SHAPES = {"small": SMALL, "medium": MEDIUM}
SEED = 1
GB = 1e9


def save_once(size: str) -> None:
    """Put the checkpoint on the server: four files."""
    state = make_model(SHAPES[size], SEED).state_dict()
    dcp.save(state, storage_writer=S3StorageWriter(CHECKPOINT, thread_count=4))


def load_once(reader: str, size: str) -> dict[str, Any]:
    """One measured load in this process."""
    state = make_model(SHAPES[size], None).state_dict()
    transport = RecordingTransport(BotoTransport())
    # The client and torch's lazy imports are made before: a job pays for them once.
    BotoTransport().head(BUCKET, "model/.metadata")

    def work() -> None:
        storage_reader = S3StorageReader(CHECKPOINT, reader_constructor=reader, transport=transport)
        dcp.load(state, storage_reader=storage_reader)

    cost = measure(work)
    for name, expected in make_model(SHAPES[size], SEED).state_dict().items():
        if not torch.equal(state[name].view(torch.uint8), expected.view(torch.uint8)):
            raise SystemExit(f"{reader}: {name} was loaded wrong")
    needed = sum(tensor.nbytes for tensor in state.values())
    return {
        **asdict(cost),
        "reader": reader,
        "needed": needed,
        "read": sum(request.bytes for request in transport.requests),
        "requests": len(transport.requests),
    }


def in_child(arguments: list[str]) -> Any:
    """Run this module in a fresh process; return the JSON that it prints last."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.load", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None


def median_row(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the runs of one reader."""
    first = results[0]
    medians = {n: statistics.median(r[n] for r in results) for n in ("wall", "cpu", "extra_peak")}
    return {
        "reader": first["reader"],
        "gb_per_s": first["needed"] / GB / medians["wall"],
        "cpu_s_per_gb": medians["cpu"] / (first["needed"] / GB),
        "requests": first["requests"],
        "read_over_needed": first["read"] / first["needed"],
        "extra_peak_mib": medians["extra_peak"] / 2**20,
    }


def show(rows: list[dict[str, Any]], needed: int) -> None:
    """The table for people."""
    print(f"\n{needed / GB:.2f} GB of weights, medians\n")
    print(
        f"{'reader':<16}{'GB/s':>8}{'CPU-s/GB':>10}{'requests':>10}{'read/needed':>13}{'+MiB':>8}"
    )
    for row in rows:
        print(
            f"{row['reader']:<16}{row['gb_per_s']:>8.3f}{row['cpu_s_per_gb']:>10.2f}"
            f"{row['requests']:>10}{row['read_over_needed']:>13.4f}{row['extra_peak_mib']:>8.0f}"
        )


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SHAPES), default="medium")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each reader")
    parser.add_argument("--readers", nargs="+", default=list(available_readers()))
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "save":
        save_once(options.size)
    elif options.child:
        print(json.dumps(load_once(options.child, options.size)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Start the server, save, and let the readers take turns."""
    warnings.simplefilter("ignore")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.readers}
    with SeaweedServer() as server:
        server.create_bucket(BUCKET)
        os.environ.update(server.environment())
        size = ["--size", options.size]
        print(f"machine: {machine()}; torch {torch.__version__}; server: SeaweedFS", flush=True)
        in_child(["--child", "save", *size])
        for number in range(options.rounds):
            for name, runs in results.items():
                runs.append(in_child(["--child", name, *size]))
                wall = runs[-1]["wall"]
                print(f"round {number + 1} of {options.rounds}: {name} {wall:.2f} s", flush=True)
    rows = [median_row(runs) for runs in results.values()]
    show(rows, next(iter(results.values()))[0]["needed"])
    if options.json:
        answer = {"machine": machine(), "torch": torch.__version__, "rows": rows, "runs": results}
        options.json.write_text(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
