"""S1: hostile ``.metadata`` and stored items; none runs, though plain pickle runs most of them.

Each sample is loaded twice, in child processes with limited memory: as a control with ``pickle``
and ``torch.load(weights_only=False)``, and by the package, metadata and a whole ``dcp.load``.
What a sample did is known by the files that it makes, the modules that are imported, the memory
that is taken, and by how the child ends.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ._gadgets import hostile, wrapped
from ._sandbox import OUT_OF_MEMORY, Ended, in_child, out_of_memory
from ._unmarked import LURES, unmarked, unmarked_items
from .report import Report
from .report import main as report_main

RUNS = 1
# Bytes of address space, and seconds. Our threads have stacks and arenas, the control has none; a
# control that is to hang need not do so for long.
_ROOM, _CONTROL_ROOM = 4 * 2**30, 3 * 2**29
_PATIENCE, _SHORT = 30, 1


def _control(kind: str, data: bytes) -> str:
    import io
    import pickle

    import torch

    if kind == "metadata":
        pickle.loads(data)
    else:
        torch.load(io.BytesIO(data), weights_only=False)
    return "loaded"


def _put(store: Any, kind: str, data: bytes) -> dict[str, Any]:
    """Store a checkpoint with the sample in it; returns a state dict to load it into."""
    import torch
    import torch.distributed.checkpoint as dcp

    from torch_s3dcp import S3StorageWriter
    from torch_s3dcp.checkpoint_metadata import dump_metadata, load_metadata

    tensor = kind == "tensor"
    state: dict[str, Any] = {"x": torch.ones(8) if tensor else "y"}
    writer = S3StorageWriter("s3://bucket/run", transport=store)
    dcp.save(state, storage_writer=writer, no_dist=True)
    if kind == "metadata":
        store.put("bucket", "run/.metadata", data)
        return {"x": ""}
    with store.get("bucket", "run/.metadata") as body:
        metadata = load_metadata(body.readall())
    (info,) = metadata.storage_data.values()
    # As other packages write it: without checksums, which would not match.
    info.__dict__.pop("s3dcp_checksums", None)
    object.__setattr__(info, "length", len(data))
    store.put("bucket", "run/.metadata", dump_metadata(metadata))
    store.put("bucket", f"run/{info.relative_path}", data)
    return {"x": torch.zeros(8) if tensor else ""}


def _ours(kind: str, data: bytes) -> str:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    from torch_s3dcp import S3DCPError, S3StorageReader
    from torch_s3dcp.transports import MemoryTransport

    store = MemoryTransport("bucket")
    state = _put(store, kind, data)
    reader = S3StorageReader("s3://bucket/run", transport=store)
    try:
        dcp.load(state, storage_reader=reader, no_dist=True)
    except CheckpointException as failure:
        errors = [error for error, _ in failure.failures.values()]
        if any(out_of_memory(error) for error in errors):
            return OUT_OF_MEMORY
        if all(isinstance(error, S3DCPError) for error in errors):
            return "refused"
        return f"untyped: {errors!r}"
    return "loaded"


def _gone(marker: Path) -> bool:
    """Whether a sample ran; forgets it."""
    left = list(marker.parent.glob(f"{marker.name}*"))
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return bool(left)


def _samples(marker: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Kind, what it is to do, name, and content."""
    for name, data in hostile(marker):
        yield "metadata", "runs", name, data
    for effect, name, data in unmarked():
        yield "metadata", effect, name, data
    for kind in ("item", "tensor"):
        for name, data in wrapped(marker):
            yield kind, "runs", name, data
        for effect, name, data in unmarked_items():
            yield kind, effect, name, data


_DID = {"ran": "runs", "imported": "imports", "hung": "hangs", "crashed": "crashes"}
_DID["allocated"] = "allocates"


def _effects(ended: Ended, marker: Path) -> set[str]:
    found = {_DID[effect] for effect in ended.effects}
    return found | ({"runs"} if _gone(marker) else set())


def _try(
    report: Report,
    marker: Path,
    load: Callable[[str, bytes], str],
    sample: tuple[str, str, str, bytes],
) -> None:
    kind, effect, name, data = sample
    if load is _control:
        seconds = _SHORT if effect == "hangs" else _PATIENCE
        ended = in_child(
            partial(load, kind, data), seconds=seconds, room=_CONTROL_ROOM, lures=LURES
        )
        if effect in _effects(ended, marker):
            report.outcomes[f"{kind} that {effect} in the control"] += 1
        return
    ended = in_child(partial(load, kind, data), seconds=_PATIENCE, room=_ROOM, lures=LURES)
    report.add(f"{kind} {ended.said if ended.said in ('refused', 'loaded') else 'neither'}")
    for did in sorted(_effects(ended, marker)):
        report.violations.append(f"{kind} {name!r} {did}")
    if ended.said not in ("refused", "loaded") and not ended.effects:
        report.violations.append(f"{kind} {name!r}: {ended.said}")


def run(seed: int, runs: int) -> Report:
    """Every sample; there is nothing random, and one run is all of them."""
    import torch.distributed.checkpoint  # noqa: F401 - once, for all children

    import torch_s3dcp  # noqa: F401

    known = [name for name in LURES if name in sys.modules]
    if known:
        raise RuntimeError(f"{known} are imported already: nobody could tell who did it")
    report = Report("hostile pickles", "S1", seed)
    folder = Path(tempfile.mkdtemp(prefix="hostile"))
    marker = folder / "ran"
    try:
        for sample in _samples(marker):
            # The control of a tensor is that of an item.
            if sample[0] != "tensor":
                _try(report, marker, _control, sample)
            _try(report, marker, _ours, sample)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    return report_main(run, RUNS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
