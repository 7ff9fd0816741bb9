"""Saves and loads through a slow server: peak memory beside the tensors, and no local disk.

Each is measured in a process of its own; the proxy holds answers back and slows them down.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch.distributed.checkpoint as dcp

from torch_s3dcp import S3StorageWriter
from torch_s3dcp.testing import FaultProxy, SeaweedServer, faults

from ._checkpoints import MIB, Quiet, Site
from ._memory_child import state_of
from .report import Report
from .report import main as _main

BUDGET = 64 * MIB
# Beyond the budget: a tenth of it.
MOST = BUDGET + BUDGET // 10
_MIB_SAVED = 256
# Action, kind of state, threads of the writer.
CASES = [
    ("load", "plain", 1),
    ("load", "converted", 1),
    ("save", "plain", 1),
    ("save", "plain", 4),
    ("save", "transposed", 2),
]


def run(seed: int, runs: int) -> Report:
    """The campaign: ``runs`` rounds of all cases."""
    report = Report("memory", "R8", seed)
    with SeaweedServer() as server:
        bucket = "memory-" + secrets.token_hex(4)
        server.create_bucket(bucket)
        site = Site.on(server, bucket)
        with FaultProxy(server, seed=seed) as proxy:
            proxy.add(faults.Trickle(10_000_000), operation="GetObject", key="*.distcp")
            proxy.add(faults.Delay(0.3), operation=("PutObject", "UploadPart"), key="*.distcp")
            behind = Site(proxy.endpoint_url, bucket, site.access_key, site.secret_key)
            for number in range(runs * len(CASES)):
                _measure(behind, site, number, report)
    return report


def _measure(behind: Site, site: Site, number: int, report: Report) -> None:
    action, kind, threads = CASES[number % len(CASES)]
    path = f"{action}-{kind}"
    if action == "load":
        with Quiet():
            writer = S3StorageWriter(site.url(path), transport=site.transport())
            dcp.save(state_of(kind, _MIB_SAVED), storage_writer=writer)
    case = {
        "site": asdict(behind),
        "path": path,
        "budget": BUDGET,
        "mib": _MIB_SAVED,
        "action": action,
        "kind": kind,
        "threads": threads,
    }
    name = f"{action}, {kind}, {threads} threads" if action == "save" else f"{action}, {kind}"
    found = _child(case)
    if isinstance(found, str):
        report.violations.append(f"{name}: {found}")
        report.add(f"{name}: failed")
        return
    report.add(name)
    peak = found["peak"]
    report.figures.setdefault(f"{name}: MiB beside the tensors", []).append(peak / MIB)
    if peak > MOST:
        report.violations.append(f"{name}: {peak / MIB:.0f} MiB with a budget of {BUDGET // MIB}")
    if found["files"] or found["written"]:
        report.violations.append(f"{name}: wrote {found['written']} bytes, {found['files'][:5]}")


def _child(case: dict[str, Any]) -> dict[str, Any] | str:
    done = subprocess.run(
        [sys.executable, "-m", "campaigns._memory_child", json.dumps(case)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        return done.stderr[-1000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return _main(run, 3, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
