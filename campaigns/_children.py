"""The processes of a save: forked from one that has imported torch already, and killed."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ._checkpoints import Site, silence
from ._saves import Save

# Longer than any save here takes, on a busy machine too.
PATIENCE = 120.0


@dataclass(frozen=True)
class Strike:
    """A process ends itself: before its request of a number is sent, or once it is answered."""

    number: int
    when: str


def fork_server() -> ForkServerContext:
    """Where children come from: importing torch takes seconds, and is done once, there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _be(
    end: Connection,
    rank: int,
    store_file: str,
    site: Site,
    save: Save,
    path: str,
    strike: Strike | None,
) -> None:
    torch.set_num_threads(1)
    silence()
    if save.ranks > 1:
        _join(rank, save.ranks, store_file)
    transport = site.transport()
    counter = _Counter(strike)
    events: Any = transport.client.meta.events
    events.register_first("before-send.s3", counter.before)
    events.register_first("response-received.s3", counter.after)
    end.send("begins")
    try:
        save.run(transport, site.bucket, path)
    except BaseException as error:  # noqa: BLE001 - the parent wants to know
        end.send(f"raised {_causes(error)}")
    else:
        end.send(counter.count)
    os._exit(0)


def _join(rank: int, ranks: int, store_file: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store_file}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )


def _causes(error: BaseException) -> str:
    inside = getattr(error, "failures", None) or {0: (error, None)}
    return "; ".join(f"rank {rank}: {wrapped[0]!r}" for rank, wrapped in inside.items())


class _Counter:
    """Counts a process's requests, and kills it at one of them."""

    def __init__(self, strike: Strike | None) -> None:
        self.count = 0
        self._answers = 0
        self._strike = strike
        self._lock = threading.Lock()

    def before(self, **_: Any) -> None:
        with self._lock:
            self.count += 1
            self._die_at("before", self.count)

    def after(self, **_: Any) -> None:
        with self._lock:
            self._answers += 1
            self._die_at("after", self._answers)

    def _die_at(self, when: str, number: int) -> None:
        if self._strike == Strike(number, when):
            os.kill(os.getpid(), signal.SIGKILL)


class Processes:
    """The ranks of one save, forked from a process that has torch imported already."""

    def __init__(
        self,
        context: ForkServerContext,
        site: Site,
        save: Save,
        path: str,
        folder: Path,
        strikes: Sequence[Strike | None] | None = None,
    ) -> None:
        self.processes: list[ForkServerProcess] = []
        self.ends: list[Connection] = []
        group = str(folder / f"{path}.store")
        for rank in range(save.ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_be,
                args=(theirs, rank, group, site, save, path, strikes[rank] if strikes else None),
                daemon=True,
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self.ends.append(ours)

    def begun(self) -> None:
        """Wait until all ranks are about to save."""
        for end in self.ends:
            if not end.poll(PATIENCE) or end.recv() != "begins":
                raise RuntimeError("a child did not begin to save")

    def kill(self, ranks: Sequence[int]) -> None:
        """SIGKILL."""
        for rank in ranks:
            self.processes[rank].kill()

    def outcomes(self) -> list[Any]:
        """What each rank came to: its count of requests, an error in words, or None: killed.

        Raises:
            TimeoutError: One neither ended nor died.
        """
        found: dict[int, Any] = {}
        deadline = time.monotonic() + PATIENCE
        while len(found) < len(self.ends):
            waiting = {end: rank for rank, end in enumerate(self.ends) if rank not in found}
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"ranks {sorted(waiting.values())} hang")
            for end in ready:
                try:
                    found[waiting[end]] = end.recv()  # type: ignore[index,union-attr]
                except (EOFError, ConnectionError):
                    found[waiting[end]] = None  # type: ignore[index]
        return [found[rank] for rank in range(len(self.ends))]

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes:
            process.kill()
            process.join()
        for end in self.ends:
            end.close()


def save_in_ranks(
    context: ForkServerContext, site: Site, save: Save, path: str, folder: Path
) -> None:
    """Save on several ranks; raises RuntimeError if one fails."""
    children = Processes(context, site, save, path, folder)
    try:
        children.begun()
        told = children.outcomes()
    finally:
        children.close()
    if not all(isinstance(one, int) for one in told):
        raise RuntimeError(f"the ranks of {save.name!r} came to {told}")
