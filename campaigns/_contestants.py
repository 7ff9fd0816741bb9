"""Savers that race: threads of this process, or processes that stay for all rounds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp.transports import Transport

from ._checkpoints import Site, silence
from ._saves import store

# For all who race to come to the line.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Entry:
    """What one saver does in a round.

    Args:
        path: Where to.
        version: What it saves.
        overwrite: As in the writer.
        together: How many wait for one another before they upload; 0: it does not.
    """

    path: str
    version: int
    overwrite: bool
    together: int


class Gate:
    """A transport that waits at a barrier before its first upload.

    By then a saver has looked at what is there, and found it free to use.
    """

    def __init__(self, inner: Transport, barrier: Any) -> None:
        self._inner = inner
        self._barrier = barrier

    def upload(self, *args: Any, **options: Any) -> Any:
        barrier, self._barrier = self._barrier, None
        if barrier is not None:
            barrier.wait(_PATIENCE)
        return self._inner.upload(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def enter(site: Site, entry: Entry, barrier: Any) -> str:
    """Save; returns ``won`` or the name of the error's class, with its text if it is odd."""
    transport: Any = site.transport()
    try:
        store(
            Gate(transport, barrier),  # type: ignore[arg-type]
            site.url(entry.path),
            entry.version,
            False,
            overwrite=entry.overwrite,
        )
    except CheckpointException as error:
        (cause,) = (wrapped[0] for wrapped in error.failures.values())
        name = type(cause).__name__
        expected = name in ("CommitConflictError", "CheckpointExistsError")
        return name if expected else repr(cause)
    except BaseException as error:  # noqa: BLE001 - told in words
        return repr(error)
    return "won"


def by_threads(site: Site, entries: Sequence[Entry]) -> list[str]:
    """All at once, in threads of this process."""
    barriers = {n: threading.Barrier(n) for n in {entry.together for entry in entries} if n}
    told = ["hangs"] * len(entries)

    def be(number: int, entry: Entry) -> None:
        told[number] = enter(site, entry, barriers.get(entry.together))

    threads = [
        threading.Thread(target=be, args=(number, entry), daemon=True)
        for number, entry in enumerate(entries)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * _PATIENCE)
    return told


class Contestants:
    """Processes that save on demand; a context manager.

    Args:
        context: Forks them.
        site: Where they save.
        barriers: How many may wait for one another.
        count: How many there are.
    """

    def __init__(
        self, context: ForkServerContext, site: Site, barriers: Sequence[int], count: int
    ) -> None:
        # Kept: the system forgets the name of a barrier with its last owner in this process.
        self._barriers = {n: context.Barrier(n) for n in barriers}
        self._ends: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_compete, args=(theirs, site, self._barriers), daemon=True
            )
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Contestants:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def race(self, entries: Sequence[Entry]) -> list[str]:
        """All at once."""
        for end, entry in zip(self._ends, entries, strict=True):
            end.send(entry)
        return [end.recv() if end.poll(2 * _PATIENCE) else "hangs" for end in self._ends]


def _compete(end: Connection, site: Site, barriers: dict[int, Any]) -> None:
    torch.set_num_threads(1)
    silence()
    while True:
        try:
            entry: Entry = end.recv()
        except EOFError:
            return
        end.send(enter(site, entry, barriers.get(entry.together)))
