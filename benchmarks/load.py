"""Compare loads side by side: every reader, other packages, and the floor of raw sockets.

Each load runs in a process and environment of its own, into memory that was touched before,
and is compared with what was saved. Systems take turns; the table shows medians.

    python -m benchmarks.load --case full --server static --rounds 3 --json results.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from torch_s3dcp import available_readers
from torch_s3dcp.testing.servers import SeaweedServer

from .cases import CASES
from .measure import machine

BUCKET = "bench"
PREFIX = "model"
GB = 1e9
PEERS = os.environ.get("TORCH_S3DCP_PEERS_PYTHON", ".venv-peers/bin/python")
OTHERS = (
    "s3torchconnector:dcp_optimized",
    "s3torchconnector:range_based",
    "s3torchconnector:sequential",
    "fsspec",
)


@contextlib.contextmanager
def static_server(folder: Path, delay: float, tls: bool) -> Iterator[dict[str, str]]:
    """The static range server in a process of its own; gives the environment to reach it."""
    arguments = [sys.executable, "-m", "benchmarks.static_server", str(folder)]
    arguments += ["--delay", str(delay)]
    environment = {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if tls:
        certificate, key = make_certificate(folder)
        arguments += ["--tls", str(certificate), str(key)]
        environment |= {"AWS_CA_BUNDLE": str(certificate), "SSL_CERT_FILE": str(certificate)}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield environment | {"AWS_ENDPOINT_URL": process.stdout.readline().strip()}
    finally:
        process.kill()
        process.wait()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} "
        "-days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


@contextlib.contextmanager
def seaweed_server(folder: Path) -> Iterator[dict[str, str]]:
    """SeaweedFS with the checkpoint on it."""
    with SeaweedServer() as server:
        server.create_bucket(BUCKET)
        client = server.client()
        for file in sorted((folder / BUCKET / PREFIX).iterdir()):
            client.upload_file(str(file), BUCKET, f"{PREFIX}/{file.name}")
        yield server.environment()


def run_child(system: str, case: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """One load in a fresh process."""
    peer = system.split(":")[0] in ("s3torchconnector", "fsspec")
    python = PEERS if peer else sys.executable
    files = folder / BUCKET / PREFIX
    command = [python, "-W", "ignore", "-m", "benchmarks.child"]
    command += [system, case, f"s3://{BUCKET}/{PREFIX}", str(files)]
    child = {**os.environ, **environment}
    done = subprocess.run(command, env=child, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def median_row(system: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the runs of one system."""
    needed = runs[0]["needed"]
    medians = {n: statistics.median(r[n] for r in runs) for n in ("wall", "cpu", "extra_peak")}
    read = runs[0].get("read")
    return {
        "system": system,
        "seconds": medians["wall"],
        "gb_per_s": needed / GB / medians["wall"],
        "cpu_s_per_gb": medians["cpu"] / (needed / GB),
        "requests": runs[0].get("requests"),
        "read_over_needed": None if read is None else read / needed,
        "extra_peak_mib": medians["extra_peak"] / 2**20,
    }


def show(rows: list[dict[str, Any]], title: str) -> None:
    """The table for people."""
    print(f"\n{title}\n")
    print(
        f"{'system':<32}{'seconds':>9}{'GB/s':>8}{'CPU-s/GB':>10}{'requests':>10}"
        f"{'read/needed':>13}{'+MiB':>8}"
    )
    for row in rows:
        ratio = row["read_over_needed"]
        print(
            f"{row['system']:<32}{row['seconds']:>9.2f}{row['gb_per_s']:>8.3f}"
            f"{row['cpu_s_per_gb']:>10.2f}{row['requests'] or '-':>10}"
            f"{'-' if ratio is None else f'{ratio:.4f}':>13}{row['extra_peak_mib']:>8.0f}"
        )


def main(**defaults: Any) -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="full")
    parser.add_argument("--server", choices=("seaweed", "static", "https"), default="seaweed")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system")
    parser.add_argument("--systems", nargs="+", help="such as ours:direct fsspec floor")
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    parser.set_defaults(**defaults)
    options = parser.parse_args()
    options.systems = options.systems or default_systems(options.server)
    compare(options)


def default_systems(server: str) -> list[str]:
    """Every reader, the other packages where they are installed, torch from memory, the floor."""
    others = [name for name in OTHERS if server == "seaweed" or name != "fsspec"]
    if not Path(PEERS).exists():
        print(f"no interpreter {PEERS}: `make peers` installs the other packages")
        others = []
    floor = [] if server == "https" else ["floor"]
    return [*(f"ours:{name}" for name in available_readers()), *others, "filesystem", *floor]


def compare(options: argparse.Namespace) -> None:
    """Save, start the server, and let the systems take turns."""
    warnings.simplefilter("ignore")
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        case = CASES[options.case]
        target = folder / BUCKET / PREFIX
        split = {"thread_count": case.files} if case.files else {"single_file_per_rank": False}
        dcp.save(case.saved(), storage_writer=dcp.FileSystemWriter(target, **split))
        if options.server == "seaweed":
            environment = stack.enter_context(seaweed_server(folder))
        else:
            tls = options.server == "https"
            environment = stack.enter_context(static_server(folder, options.delay, tls))
        results: dict[str, list[dict[str, Any]]] = {system: [] for system in options.systems}
        for number in range(options.rounds):
            for system, runs in results.items():
                runs.append(run_child(system, options.case, folder, environment))
                wall = runs[-1]["wall"]
                print(f"round {number + 1}/{options.rounds} {system}: {wall:.2f} s", flush=True)
    rows = [median_row(system, runs) for system, runs in results.items()]
    needed = next(iter(results.values()))[0]["needed"]
    delay = f", {options.delay * 1000:g} ms more per request" if options.delay else ""
    title = f"{options.case}: {needed / GB:.2f} GB from {options.server}{delay}; medians"
    about = f"machine {machine()}, torch {re.sub(r'[+].*', '', torch.__version__)}"
    show(rows, f"{title}\n{about}")
    if options.json:
        answer = {"title": title, "machine": machine(), "rows": rows, "runs": results}
        options.json.write_text(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
