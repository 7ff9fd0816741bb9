"""Writes the checkpoint of a case with PyTorch alone, from one rank or from several; or with ours.

    python -m benchmarks.checkpoints CASE FOLDER

Several ranks are forked from a process that has done nothing else: they share the memory of the
state, and nothing has run that a fork would break.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from .cases import State, make_cases


def write_checkpoint(case: str, folder: Path, *, tiny: bool = False, writer: str = "torch") -> None:
    """Write the checkpoint of a case into a new folder."""
    found = make_cases(tiny)[case]
    if writer == "ours":
        if found.ranks > 1:
            raise SystemExit(f"{case} is saved by several ranks: only by torch's writer")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_by_ours(found.saved(), folder, found.files)
        return
    if found.ranks == 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_by_one(found.saved(), folder, found.files)
        return
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.checkpoints", case, str(folder)]
    command += ["--tiny"] * tiny
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the checkpoint of {case} was not written:\n{done.stderr[-3000:]}")


def save_by_one(state: State, folder: Path, files: int) -> None:
    """Save all from this process into so many files; 0: one for each item."""
    split: dict[str, Any] = {"thread_count": files} if files else {"single_file_per_rank": False}
    save(state, storage_writer=FileSystemWriter(folder, **split), no_dist=True)


def save_by_ours(state: State, folder: Path, files: int) -> None:
    """The same with this package's writer, which stores checksums."""
    from torch_s3dcp import S3StorageWriter
    from torch_s3dcp.transports import MemoryTransport

    split: dict[str, Any] = {"thread_count": files} if files else {"single_file_per_rank": False}
    transport = MemoryTransport("bucket")
    writer = S3StorageWriter("s3://bucket/run", transport=transport, **split)
    save(state, storage_writer=writer, no_dist=True)
    folder.mkdir(parents=True)
    keys = [info.key for page in transport.list("bucket", "run/") for info in page.object_info]
    for key in keys:
        with transport.get("bucket", key) as body:
            (folder / key.removeprefix("run/")).write_bytes(body.readall())
        transport.delete("bucket", [key])


def save_by_ranks(state: State, folder: Path, ranks: int) -> None:
    """Save shards of dim 0 from forked ranks of a gloo group, each into a file."""
    folder.mkdir(parents=True)
    store = folder.parent / "ranks"
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_save_shards, args=(state, folder, store, rank, ranks))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    store.unlink(missing_ok=True)
    if any(process.exitcode for process in processes):
        raise SystemExit("a rank failed")


def _save_shards(state: State, folder: Path, store: Path, rank: int, ranks: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    shards = {
        name: DTensor.from_local(
            whole.chunk(ranks)[rank],
            mesh,
            [Shard(0)],
            shape=whole.shape,
            stride=whole.stride(),
        )
        for name, whole in state.items()
    }
    save(shards, storage_writer=FileSystemWriter(folder))
    dist.destroy_process_group()


def main() -> None:
    """Parse the command line, fork, write."""
    warnings.simplefilter("ignore")
    # No thread but this one when ranks are forked.
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description="Write the checkpoint of a case from several ranks."
    )
    parser.add_argument("case", choices=make_cases())
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    case = make_cases(options.tiny)[options.case]
    save_by_ranks(case.saved(), options.folder, case.ranks)


if __name__ == "__main__":
    main()
