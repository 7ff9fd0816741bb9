"""S1: hostile ``.metadata`` and stored items; none runs, though plain pickle runs most of them.

Each sample is loaded twice, in child processes: as a control with ``pickle`` and
``torch.load(weights_only=False)``, and by the package, metadata and a whole ``dcp.load``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ._gadgets import hostile, wrapped
from .report import Report
from .report import main as report_main

RUNS = 1


def _in_child(action: Callable[[], str]) -> str:
    """What an action says, in a process of its own: a sample may do anything to it."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        import signal

        signal.alarm(20)
        said = "no answer"
        try:
            said = action()
        except BaseException as error:  # noqa: BLE001 - whatever a sample does is an outcome
            said = f"{type(error).__module__}.{type(error).__name__}"
        finally:
            os.write(send, said.encode()[:4000])
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    return said or "killed"


def _control(kind: str, data: bytes) -> str:
    import io
    import pickle

    import torch

    if kind == "metadata":
        pickle.loads(data)
    else:
        torch.load(io.BytesIO(data), weights_only=False)
    return "loaded"


def _ours(kind: str, data: bytes) -> str:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    from torch_s3dcp import S3DCPError, S3StorageReader, S3StorageWriter
    from torch_s3dcp.transports import MemoryTransport

    store = MemoryTransport("bucket")
    where = "s3://bucket/run"
    state = {"x": "y" * (len(data) + 100)}
    dcp.save(state, storage_writer=S3StorageWriter(where, transport=store), no_dist=True)
    if kind == "metadata":
        store.put("bucket", "run/.metadata", data)
    else:
        from torch_s3dcp.checkpoint_metadata import dump_metadata, load_metadata

        with store.get("bucket", "run/.metadata") as body:
            metadata = load_metadata(body.readall())
        (info,) = metadata.storage_data.values()
        object.__setattr__(info, "length", len(data))
        store.put("bucket", "run/.metadata", dump_metadata(metadata))
        store.put("bucket", f"run/{info.relative_path}", data)
    reader = S3StorageReader(where, transport=store)
    try:
        dcp.load({"x": ""}, storage_reader=reader, no_dist=True)
    except CheckpointException as failure:
        errors = [error for error, _ in failure.failures.values()]
        if all(isinstance(error, S3DCPError) for error in errors):
            return "refused"
        return f"untyped: {errors!r}"
    return "loaded"


def _gone(marker: Path) -> bool:
    """Whether a sample ran; forgets it."""
    ran = marker.exists() or any(marker.parent.glob(f"{marker.name}*"))
    for left in marker.parent.glob(f"{marker.name}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return ran


def run(seed: int, runs: int) -> Report:
    """Every sample; there is nothing random, and one run is all of them."""
    import torch.distributed.checkpoint  # noqa: F401 - once, for all children

    import torch_s3dcp  # noqa: F401

    report = Report("hostile pickles", "S1", seed)
    folder = Path(tempfile.mkdtemp(prefix="hostile"))
    marker = folder / "ran"
    try:
        samples = [("metadata", *sample) for sample in hostile(marker)]
        samples += [("item", *sample) for sample in wrapped(marker)]
        for kind, name, data in samples:
            _in_child(lambda k=kind, d=data: _control(k, d))  # type: ignore[misc]
            if _gone(marker):
                report.outcomes[f"{kind} that plain pickle runs"] += 1
            said = _in_child(lambda k=kind, d=data: _ours(k, d))  # type: ignore[misc]
            report.add(f"{kind} {said if said in ('refused', 'loaded') else 'neither'}")
            if _gone(marker):
                report.violations.append(f"{kind} {name!r} ran")
            if said not in ("refused", "loaded"):
                report.violations.append(f"{kind} {name!r}: {said}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    return report_main(run, RUNS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
