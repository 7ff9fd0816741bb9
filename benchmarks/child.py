"""One measured load in a process of its own; prints one line of JSON.

Runs in the project's environment and in that of the other packages, so it imports each
system only when it is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import urllib.parse
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from .cases import CASES, State, expected_part, local_part
from .measure import measure

Load = Callable[[], dict[str, Any]]
_PART = 32 * 2**20


def ours(reader: str, path: str, state: State) -> Load:
    """This package, counted request by request."""
    from torch_s3dcp import S3StorageReader
    from torch_s3dcp.testing.wrappers import RecordingTransport
    from torch_s3dcp.transports import BotoTransport

    transport = RecordingTransport(BotoTransport())

    def load() -> dict[str, Any]:
        storage = S3StorageReader(path, reader_constructor=reader, transport=transport)
        dcp.load(state, storage_reader=storage, no_dist=True)
        return {
            "requests": len(transport.requests),
            "read": sum(request.bytes for request in transport.requests),
        }

    BotoTransport().prepare()
    return load


def s3torchconnector(reader: str, path: str, state: State) -> Load:
    """AWS's package."""
    from s3torchconnector import S3ReaderConstructor
    from s3torchconnector.dcp import S3StorageReader

    constructor = getattr(S3ReaderConstructor, reader)()

    def load() -> dict[str, Any]:
        storage = S3StorageReader("us-east-1", path, reader_constructor=constructor)
        dcp.load(state, storage_reader=storage, no_dist=True)
        return {}

    return load


def fsspec(_: str, path: str, state: State) -> Load:
    """torch's reader over s3fs."""
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

    def load() -> dict[str, Any]:
        dcp.load(state, storage_reader=FsspecReader(path), no_dist=True)
        return {}

    return load


def filesystem(folder: str, _: str, state: State) -> Load:
    """torch's reader over files, which lie in memory."""

    def load() -> dict[str, Any]:
        dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
        return {}

    return load


def floor(folder: str, path: str, state: State) -> Load:
    """Raw sockets into memory that is there: what the server and the kernel allow."""
    import boto3

    client = boto3.client("s3")
    bucket, _, prefix = path.removeprefix("s3://").partition("/")
    parts: list[tuple[str, int, int, memoryview]] = []
    for file in sorted(Path(folder).glob("*.distcp")):
        url = client.generate_presigned_url(
            "get_object", {"Bucket": bucket, "Key": f"{prefix}/{file.name}"}
        )
        memory = memoryview(torch.ones(file.stat().st_size, dtype=torch.uint8).numpy())
        for start in range(0, len(memory), _PART):
            end = min(start + _PART, len(memory))
            parts.append((url, start, end, memory[start:end]))
    work = iter(parts)
    lock = threading.Lock()

    def run() -> None:
        connection: socket.socket | None = None
        while True:
            with lock:
                part = next(work, None)
            if part is None:
                return
            connection = _receive(connection, *part)

    def load() -> dict[str, Any]:
        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"requests": len(parts), "read": sum(end - start for _, start, end, _ in parts)}

    return load


def _receive(
    connection: socket.socket | None, url: str, start: int, end: int, target: memoryview
) -> socket.socket:
    place = urllib.parse.urlsplit(url)
    if connection is None:
        connection = socket.create_connection((place.hostname, place.port))
    request = (
        f"GET {place.path}?{place.query} HTTP/1.1\r\nHost: {place.netloc}\r\n"
        f"Range: bytes={start}-{end - 1}\r\n\r\n"
    )
    connection.sendall(request.encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(4096)
    head, _, rest = head.partition(b"\r\n\r\n")
    if b" 206 " not in head.split(b"\r\n")[0]:
        raise SystemExit(f"the server answered {head!r}")
    target[: len(rest)] = rest
    filled = len(rest)
    while filled < len(target):
        filled += connection.recv_into(target[filled:])
    return connection


SYSTEMS = {
    "ours": ours,
    "s3torchconnector": s3torchconnector,
    "fsspec": fsspec,
    "filesystem": filesystem,
    "floor": floor,
}


def main() -> None:
    """Load, check, print."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("path")
    parser.add_argument("folder")
    options = parser.parse_args()
    case = CASES[options.case]
    state = case.wanted()
    name, _, setting = options.system.partition(":")
    argument = options.folder if name in ("filesystem", "floor") else setting
    load = SYSTEMS[name](argument, options.path, state)
    # Unpickling metadata imports this for the first time; a training job has it already.
    import torch.distributed._shard.sharded_tensor

    found: dict[str, Any] = {}
    cost = measure(lambda: found.update(load()))
    if name != "floor":
        saved = case.saved()
        for key, value in state.items():
            here, there = local_part(value), expected_part(key, value, saved)
            if not torch.equal(here.view(torch.int16), there.contiguous().view(torch.int16)):
                raise SystemExit(f"{options.system}: {key} was loaded wrong")
    needed = sum(local_part(value).nbytes for value in state.values())
    print(json.dumps({**asdict(cost), **found, "needed": needed, "pid": os.getpid()}))


if __name__ == "__main__":
    main()
