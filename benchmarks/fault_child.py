"""Saves and loads in a process of its own, as lines of JSON ask for it; one line back for each.

``{"action": "save", "path": "s3://bucket/run", "version": 1, "mib": 24, "threads": 1}``. What is
loaded is compared with what each version holds; the answer's ``versions`` are those that it is
equal to, tensor by tensor.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import sys
import time
import warnings
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

_TENSORS = 6


def state_of(version: int, mib: int) -> dict[str, torch.Tensor]:
    """The same values for the same version in every process."""
    generator = torch.Generator().manual_seed(version)
    rows = mib * 2**20 // _TENSORS // 4
    return {f"x{i}": torch.randn(rows, generator=generator) for i in range(_TENSORS)}


def make_writer(system: str, path: str, threads: int) -> Any:
    """A storage writer with the package's own settings."""
    if system == "s3torchconnector":
        from s3torchconnector import S3ClientConfig as TheirConfig
        from s3torchconnector.dcp import S3StorageWriter as TheirWriter

        config = TheirConfig(force_path_style=True)
        region = os.environ["AWS_DEFAULT_REGION"]
        return TheirWriter(region, path, config, thread_count=threads)
    if system == "fsspec":
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        return FsspecWriter(path, thread_count=threads)
    from torch_s3dcp import S3StorageWriter

    return S3StorageWriter(path, thread_count=threads)


def make_reader(system: str, path: str) -> Any:
    """A storage reader with the package's own settings."""
    if system == "s3torchconnector":
        from s3torchconnector import S3ClientConfig as TheirConfig
        from s3torchconnector.dcp import S3StorageReader as TheirReader

        return TheirReader(os.environ["AWS_DEFAULT_REGION"], path, TheirConfig(True))
    if system == "fsspec":
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        return FsspecReader(path)
    from torch_s3dcp import S3StorageReader

    return S3StorageReader(path)


def forget(system: str) -> None:
    """Drop what a client remembers of other servers and of earlier runs."""
    if system == "fsspec":
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()


def perform(system: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Do one thing; raises what the package raises."""
    forget(system)
    os.environ["AWS_ENDPOINT_URL"] = spec["endpoint"]
    path, mib = spec["path"], spec["mib"]
    if spec["action"] == "save":
        state = state_of(spec["version"], mib)
        dcp.save(state, storage_writer=make_writer(system, path, spec.get("threads", 1)))
        return {}
    state = {name: torch.zeros_like(value) for name, value in state_of(0, mib).items()}
    dcp.load(state, storage_reader=make_reader(system, path))
    return {"versions": sorted({_version(name, value, mib) for name, value in state.items()})}


def _version(name: str, value: torch.Tensor, mib: int) -> int:
    """Which version a tensor is from; -1 if it is from none."""
    return next((v for v in (1, 2) if torch.equal(value, state_of(v, mib)[name])), -1)


def cause(error: BaseException) -> str:
    """The kind of the innermost error that the package itself raised, and its beginning."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    text = re.sub(r"\s+", " ", str(error))
    return f"{type(error).__name__}: {text[:300]}"


def main() -> None:
    """Answer until the input ends."""
    warnings.simplefilter("ignore")
    system = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print must not be taken for an answer
    for line in sys.stdin:
        spec = json.loads(line)
        begin = time.monotonic()
        # Where it stands, shortly before it is killed for not answering.
        faulthandler.dump_traceback_later(spec["limit"] - 2)
        try:
            result = perform(system, spec)
        except BaseException as error:  # noqa: BLE001 - CheckpointException is none of Exception's
            result = {"raises": cause(error)}
        faulthandler.cancel_dump_traceback_later()
        result["seconds"] = time.monotonic() - begin
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
