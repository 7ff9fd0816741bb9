"""Clients that receive ranges of an object into given memory; one measured run in a process.

    python -m benchmarks.transport_candidates NAME BUCKET KEY FILE

``FILE`` holds what the object holds. The server is found by the environment, as boto3 finds it.
Prints one line of JSON. Runs in the project's environment and in that of the other packages,
so it imports each client only when it is asked for.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .measure import measure
from .native_clients import Fetch, awscrt_fetch, byte_range, obstore_blocks, obstore_fetch
from .sockets import connect, fill, receive

_MIB = 2**20
PART = 32 * _MIB
IN_FLIGHT = 8
_WARM_UP = 64 * 1024

#: Receives the whole object, after a small request.
Receive = Callable[[memoryview], None]


def sockets(bucket: str, key: str) -> Receive:
    """The floor: raw sockets, one for each thread. Nothing is checked, nothing tried again."""
    import boto3

    place = {"Bucket": bucket, "Key": key}
    url = boto3.client("s3").generate_presigned_url("get_object", place)
    of_thread = threading.local()

    def fetch(start: int, memory: memoryview) -> None:
        if not hasattr(of_thread, "connection"):
            of_thread.connection = connect(url)
        receive(of_thread.connection, url, start, memory)

    return _in_threads(fetch)


def boto3(bucket: str, key: str, block: int) -> Receive:
    """A plain boto3 client, and ``readinto`` of its bodies, up to a block at a time."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=IN_FLIGHT))

    def fetch(start: int, memory: memoryview) -> None:
        answer = client.get_object(Bucket=bucket, Key=key, Range=byte_range(start, memory))
        body: Any = answer["Body"]
        fill(body.readinto, memory, block)

    return _in_threads(fetch)


def ours(bucket: str, key: str) -> Receive:
    """The transport of this package. Like a reader, it insists on the first answer's ETag."""
    from torch_s3dcp.transports import BotoTransport

    transport = BotoTransport()
    etag: str | None = None

    def fetch(start: int, memory: memoryview) -> None:
        nonlocal etag
        with transport.get(bucket, key, start, start + len(memory), if_match=etag) as body:
            etag = body.info.etag
            fill(body.readinto, memory, PART)

    return _in_threads(fetch)


def awscrt(bucket: str, key: str) -> Receive:
    """One request of awscrt for each range, which is also its part."""
    return _in_threads(awscrt_fetch(bucket, key, PART, IN_FLIGHT))


def awscrt_split(bucket: str, key: str) -> Receive:
    """One request of awscrt, which it cuts itself into parts of 8 MiB."""
    fetch = awscrt_fetch(bucket, key, 8 * _MIB, IN_FLIGHT)
    _warm(fetch)
    return lambda memory: fetch(0, memory)


CANDIDATES: dict[str, Callable[[str, str], Receive]] = {
    "sockets": sockets,
    "boto3": lambda bucket, key: boto3(bucket, key, PART),
    "boto3:blocks": lambda bucket, key: boto3(bucket, key, _MIB),
    "ours": ours,
    "awscrt": awscrt,
    "awscrt:split": awscrt_split,
    "obstore": lambda bucket, key: _in_threads(obstore_fetch(bucket, key)),
    "obstore:blocks": lambda bucket, key: _in_threads(obstore_blocks(bucket, key, _MIB)),
}


def _in_threads(fetch: Fetch) -> Receive:
    """Range after range, as many at once as there are threads."""
    _warm(fetch)

    def receive(memory: memoryview) -> None:
        starts = range(0, len(memory), PART)
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(lambda start: fetch(start, memory[start : start + PART]), starts))

    return receive


def _warm(fetch: Fetch) -> None:
    fetch(0, memoryview(bytearray(_WARM_UP)))


def main() -> None:
    """Receive, check, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CANDIDATES)
    parser.add_argument("bucket")
    parser.add_argument("key")
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    memory = bytearray(b"\1") * options.file.stat().st_size
    receive = CANDIDATES[options.name](options.bucket, options.key)
    cost = measure(lambda: receive(memoryview(memory)))
    if memory != options.file.read_bytes():
        raise SystemExit(f"{options.name} received something else")
    print(json.dumps(asdict(cost)))


if __name__ == "__main__":
    main()
