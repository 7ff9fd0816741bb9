"""One of 16 streams is a black hole, trickles or stalls: how much longer a load or a save takes.

The package's own settings. Each seconds over the clean time is a figure; requests beyond those
that the data needs are counted in clean runs.
"""

from __future__ import annotations

import random
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from torch_s3dcp import S3StorageReader, S3StorageWriter
from torch_s3dcp.testing import FaultProxy, FaultRule, LoggedRequest, SeaweedServer, faults

from ._checkpoints import MIB, Quiet, Site, silence
from .report import Report
from .report import main as _main

STREAMS = 16
_PART = 8 * MIB
# The bar: seconds over the clean time, and requests more than needed, of a hundred.
MOST_SECONDS = 5.0
MOST_REQUESTS = 0.05
# A machine with much else to do is slower than that at times.
_CLEAN_RUNS = 3
_PATIENCE = 60.0

_HOLE = faults.BlackHole()
CASES: dict[str, tuple[str, faults.WireFault]] = {
    "load, black hole": ("load", _HOLE),
    "load, trickle": ("load", faults.Trickle(20_000)),
    "load, stall": ("load", faults.Stall(8.0)),
    "load, black hole at .metadata": ("metadata", _HOLE),
    "save, black hole": ("save", _HOLE),
    "save, late answer": ("save", faults.Delay(8.0)),
}


@dataclass
class Timing:
    """One load or save."""

    seconds: float
    requests: list[LoggedRequest]
    error: BaseException | None = None
    same: bool = True


class Campaign:
    """A server, and a checkpoint whose data takes ``STREAMS`` requests."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.seed = seed
        self.state = {"x": torch.arange(STREAMS * _PART // 4 - 2048, dtype=torch.int32)}
        self._save(site.endpoint_url, "base")

    def time(self, action: str, rule: FaultRule | None) -> Timing:
        """Seconds with a fault, or without."""
        with FaultProxy(self.site.endpoint_url, seed=self.seed) as proxy:
            if rule:
                proxy.rules.add(rule)
            act = self._save if action == "save" else self._load
            timing = _timed(lambda: act(proxy.endpoint_url, "base" if act == self._load else "new"))
            timing.requests = proxy.log.entries()
        return timing

    def _load(self, endpoint_url: str, path: str) -> bool:
        state = {"x": torch.zeros_like(self.state["x"])}
        reader = S3StorageReader(self.site.url(path), transport=self._transport(endpoint_url))
        with Quiet():
            dcp.load(state, storage_reader=reader)
        return torch.equal(state["x"], self.state["x"])

    def _save(self, endpoint_url: str, path: str) -> bool:
        writer = S3StorageWriter(self.site.url(path), transport=self._transport(endpoint_url))
        with Quiet():
            dcp.save(self.state, storage_writer=writer)
        return True

    def _transport(self, endpoint_url: str) -> Any:
        transport = self.site.transport(endpoint_url)
        # A client of its own each time, as at the start of a job, but not in the time.
        _ = transport.client
        return transport


def _timed(act: Callable[[], bool]) -> Timing:
    """How long it takes; after ``_PATIENCE`` it counts as hanging and is left to itself."""
    timing = Timing(_PATIENCE, [], TimeoutError(f"no end within {_PATIENCE:g} s"))

    def do() -> None:
        begin = time.monotonic()
        try:
            timing.same = act()
            timing.error = None
        except BaseException as error:  # noqa: BLE001 - a figure of the report
            timing.error = error
        timing.seconds = time.monotonic() - begin

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return timing


def surplus(requests: list[LoggedRequest], operation: str) -> tuple[int, int]:
    """Requests for what was asked for already, and all of them."""
    seen: set[tuple[str, int | None, int | None, str | None]] = set()
    again = 0
    asked = [entry.request for entry in requests if entry.operation == operation]
    for request in asked:
        what = (request.key, request.part, request.start, request.upload_id)
        again += what in seen
        seen.add(what)
    return again, len(asked)


def run(seed: int, runs: int) -> Report:
    """The campaign: ``runs`` of each case, and clean ones in between."""
    report = Report("streams", "R7", seed)
    silence()
    with SeaweedServer() as server:
        bucket = "streams-" + secrets.token_hex(4)
        server.create_bucket(bucket)
        campaign = Campaign(Site.on(server, bucket), seed)
        clean = {action: _clean(campaign, action, report) for action in ("load", "save")}
        for name, (action, fault) in CASES.items():
            for number in range(runs):
                choose = random.Random(f"{seed}/{name}/{number}")
                _strike(campaign, name, action, fault, choose, clean, report)
    return report


def _clean(campaign: Campaign, action: str, report: Report) -> float:
    timings = [campaign.time(action, None) for _ in range(_CLEAN_RUNS + 1)][1:]
    again = total = 0
    for timing in timings:
        if timing.error or not timing.same:
            report.violations.append(f"a clean {action}: {timing.error or 'other bytes'}")
        for operation in ("GetObject", "UploadPart"):
            more, asked = surplus(timing.requests, operation)
            again, total = again + more, total + asked
    seconds = statistics.median(timing.seconds for timing in timings)
    report.add(f"clean {action}: {seconds:.2f} s, {again} of {total} requests again")
    if again > MOST_REQUESTS * total:
        report.violations.append(f"clean {action}: {again} of {total} requests were made again")
    return seconds


def _strike(
    campaign: Campaign,
    name: str,
    action: str,
    fault: faults.WireFault,
    choose: random.Random,
    clean: dict[str, float],
    report: Report,
) -> None:
    operation = "UploadPart" if action == "save" else "GetObject"
    key = "*/.metadata" if action == "metadata" else "*.distcp"
    skip = 0 if action == "metadata" else choose.randrange(STREAMS)
    timing = campaign.time(
        "save" if action == "save" else "load", FaultRule(fault, operation, key, skip=skip, count=1)
    )
    over = timing.seconds - clean["save" if action == "save" else "load"]
    struck = any(entry.fault for entry in timing.requests)
    report.add(f"{name}{'' if struck else ', not struck'}")
    report.figures.setdefault(f"{name}: seconds over the clean time", []).append(over)
    if timing.error is not None or not timing.same:
        report.violations.append(f"{name}, stream {skip}: {timing.error or 'other bytes'}")
    elif over > MOST_SECONDS:
        report.violations.append(f"{name}, stream {skip}: {over:.1f} s over the clean time")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return _main(run, 10, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
