"""One measured save or load in a process of its own: peak memory, and files opened for writing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from torch_s3dcp import S3StorageReader, S3StorageWriter

from ._checkpoints import MIB, Quiet, Site

ITEMS = 8


def state_of(kind: str, mib: int) -> dict[str, torch.Tensor]:
    """What is saved: ``ITEMS`` tensors, ``mib`` in all."""
    count = mib * MIB // ITEMS // 4
    flat = {f"x{n}": torch.arange(count, dtype=torch.float32) + n for n in range(ITEMS)}
    if kind == "transposed":
        return {name: value.view(1024, -1).t() for name, value in flat.items()}
    return flat


def _work(case: dict[str, Any]) -> Callable[[], object]:
    """What is measured; all that it needs beside its buffers exists when it begins."""
    # Settings of the client, above those that all campaigns have.
    transport = Site(**case["site"]).transport(memory_budget=case["budget"])
    url = f"s3://{case['site']['bucket']}/{case['path']}"
    kind = case["kind"]
    state = state_of(kind, case["mib"])
    with Quiet():  # the client, its threads, and torch's imports
        small = {"warm": torch.zeros(100)}
        dcp.save(small, storage_writer=S3StorageWriter(f"{url}-warm", transport=transport))
        dcp.load(small, storage_reader=S3StorageReader(f"{url}-warm", transport=transport))
    config = transport.config
    if case["action"] == "save":
        writer = S3StorageWriter(
            url, s3client_config=config, transport=transport, thread_count=case["threads"]
        )
        return lambda: dcp.save(state, storage_writer=writer)
    wanted = {name: torch.full_like(value, 9.0) for name, value in state.items()}
    if kind == "converted":
        wanted = {name: value.to(torch.bfloat16) for name, value in wanted.items()}
    reader = S3StorageReader(url, s3client_config=config, transport=transport)

    def load() -> None:
        dcp.load(wanted, storage_reader=reader)
        for name, value in state.items():
            # By pieces: what is compared must not count.
            for got, put in zip(wanted[name].split(1 << 16), value.split(1 << 16), strict=True):
                if not torch.equal(got, put.to(got.dtype)):
                    raise SystemExit(f"{name} was loaded wrong")

    return load


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024


def _written() -> int:
    text = Path("/proc/self/io").read_text()
    return int(text.partition("\nwrite_bytes:")[2].split()[0])


def main() -> None:
    """Measure what the first argument says; print one line of JSON."""
    case = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    work = _work(case)
    files: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.mkdir", "tempfile.mkstemp", "tempfile.mkdtemp"):
            files.append(str(arguments[0]))
        if event == "open":
            path, _, flags = arguments
            changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
            if isinstance(flags, int) and flags & changes and str(path) != os.devnull:
                files.append(str(path))

    sys.addaudithook(watch)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size
    files.clear()
    before, written = _status("VmRSS"), _written()
    with Quiet():
        work()
    print(
        json.dumps(
            {"peak": _status("VmHWM") - before, "written": _written() - written, "files": files}
        )
    )


if __name__ == "__main__":
    main()
