"""Save a sharded model from 2 ranks to a local S3 server; load it with 4 ranks and with 1.

Run it with ``make demo``. Everything happens on this machine: the server is SeaweedFS on a
loopback port with its data in a temporary folder, and is gone afterwards.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from torch_s3dcp import S3StorageReader, S3StorageWriter, available_readers
from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.testing.wrappers import RecordingTransport
from torch_s3dcp.transports import BotoTransport

from .transformer import SMALL, make_model

BUCKET = "models"
CHECKPOINT = f"s3://{BUCKET}/demo/step-100"
SEED = 7
MB = 1e6


def sharded_state(seed: int | None) -> dict[str, Any]:
    """The model's state, cut over the ranks by FSDP2 where there is more than one."""
    model = make_model(SMALL, seed)
    if dist.is_initialized():
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    return {"model": get_model_state_dict(model)}


def local_bytes(value: Any) -> torch.Tensor:
    """This rank's part of a tensor, as bytes."""
    tensor = value.to_local() if isinstance(value, DTensor) else value
    return tensor.detach().contiguous().view(torch.uint8)


def save(rank: int) -> dict[str, Any]:
    """One rank of the save."""
    transport = RecordingTransport(BotoTransport())
    state = sharded_state(SEED)
    synchronize()
    begin = time.perf_counter()
    dcp.save(state, storage_writer=S3StorageWriter(CHECKPOINT, transport=transport))
    return report(transport, time.perf_counter() - begin, state)


def load(rank: int, reader: str) -> dict[str, Any]:
    """One rank of a load, compared bit for bit with what was saved."""
    transport = RecordingTransport(BotoTransport())
    state = sharded_state(None)
    synchronize()
    begin = time.perf_counter()
    storage_reader = S3StorageReader(CHECKPOINT, reader_constructor=reader, transport=transport)
    dcp.load(state, storage_reader=storage_reader)
    found = report(transport, time.perf_counter() - begin, state)
    expected = sharded_state(SEED)["model"]
    for name, value in state["model"].items():
        if not torch.equal(local_bytes(value), local_bytes(expected[name])):
            raise SystemExit(f"{name} differs from what was saved")
    return found


def synchronize() -> None:
    """Let all ranks begin at the same moment."""
    if dist.is_initialized():
        dist.barrier()


def report(transport: RecordingTransport, seconds: float, state: dict[str, Any]) -> dict[str, Any]:
    """What one rank did, in numbers."""
    return {
        "seconds": seconds,
        "requests": len(transport.requests),
        "bytes": sum(request.bytes for request in transport.requests),
        "state": sum(local_bytes(value).numel() for value in state["model"].values()),
    }


def run_rank(
    rank: int, ranks: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Entry of a spawned rank."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if ranks > 1:
        store = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    torch.save(work(rank, *arguments), f"{folder}/result-{rank}")
    if ranks > 1:
        dist.destroy_process_group()


def on_ranks(ranks: int, work: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Run ``work`` on that many processes; add up what they report."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (ranks, folder, work, arguments), nprocs=ranks)
        results = [torch.load(Path(folder, f"result-{rank}")) for rank in range(ranks)]
    return {
        "seconds": max(result["seconds"] for result in results),
        **{name: sum(r[name] for r in results) for name in ("requests", "bytes", "state")},
    }


def show(title: str, ranks: int, result: dict[str, Any]) -> None:
    """One line of the table. The rate is the state's bytes over the slowest rank's time."""
    print(
        f"{title:<24}{ranks:>6}{result['state'] / MB:>11.1f}{result['bytes'] / MB:>13.1f}"
        f"{result['requests']:>10}{result['seconds']:>9.2f}"
        f"{result['state'] / MB / result['seconds']:>8.0f}",
        flush=True,
    )


def main() -> int:
    """Run the demonstration; the exit status is 0 when every load was right."""
    print("Starting SeaweedFS, an S3 server, on a loopback port ...", flush=True)
    with SeaweedServer() as server:
        server.create_bucket(BUCKET)
        os.environ.update(server.environment())
        print(f"Saving {CHECKPOINT} to {server.endpoint_url} and loading it again.\n")
        print(
            f"{'':<24}{'ranks':>6}{'state MB':>11}{'on wire MB':>13}{'requests':>10}"
            f"{'seconds':>9}{'MB/s':>8}"
        )
        show("save", 2, on_ranks(2, save))
        for reader in available_readers():
            for ranks in (4, 1):
                show(f"load, {reader}", ranks, on_ranks(ranks, load, reader))
        print(f"\nObjects in s3://{BUCKET}:")
        for page in server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for item in page["Contents"]:
                print(f"  {item['Size']:>12,}  {item['Key']}")
    print(
        "\nEvery load was compared with the saved model bit for bit: all equal.\n"
        "2 cores serve the ranks and the server, so more ranks do not mean more speed here."
        if os.cpu_count() == 2
        else "\nEvery load was compared with the saved model bit for bit: all equal."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
