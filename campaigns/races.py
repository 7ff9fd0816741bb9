"""Eight save to one address at once: one wins, the others are told, and readers see no mixture.

They race over nothing or over a checkpoint, may overwrite or may not, and are threads or
processes. Meanwhile others load: what they get is the old checkpoint or the winner's, bit for
bit, or an error that the documentation names.
"""

from __future__ import annotations

import random
import secrets
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed.checkpoint as dcp

from torch_s3dcp import S3StorageReader
from torch_s3dcp.testing.servers import SeaweedServer

from ._checkpoints import ABSENT, INCOMPLETE, Site, judged, keys_of, loaded, name_of, silence
from ._children import fork_server
from ._contestants import Contestants, Entry, by_threads
from ._saves import OLD, store
from .report import Report
from .report import main as _main

SAVERS = 8
READERS = 2
# What saver 0 saves.
_FIRST = 10
# What a load may raise while the checkpoint is replaced: the old data has gone.
_REPLACED = ("ObjectNotFoundError", "ObjectChangedError")


@dataclass(frozen=True)
class Race:
    """One kind of race.

    Args:
        over: Whether there is a checkpoint before.
        overwrite: Whether savers may replace it, in turn.
        wait: Whether all look at what is there before the first one uploads. Without that a
            saver may come late and replace what the winner has just saved, as it may.
    """

    name: str
    over: bool
    overwrite: tuple[bool, ...]
    wait: bool = True

    def entries(self, path: str) -> list[Entry]:
        """What each saver does; those that cannot get far are not waited for."""
        may = [self.overwrite[n % len(self.overwrite)] for n in range(SAVERS)]
        going = [one or not self.over for one in may]
        together = sum(going) if self.wait else 0
        return [Entry(path, _FIRST + n, may[n], together if going[n] else 0) for n in range(SAVERS)]


RACES = (
    Race("over nothing", over=False, overwrite=(True, False)),
    Race("over a checkpoint", over=True, overwrite=(True,)),
    Race("over a checkpoint, half may not", over=True, overwrite=(True, False)),
    Race("over nothing, none may overwrite, no start", False, (False,), wait=False),
)


class Readers:
    """Threads that load again and again; a context manager."""

    def __init__(self, site: Site, path: str) -> None:
        self._site = site
        self._path = path
        self._stop = threading.Event()
        self.seen: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._read) for _ in range(READERS)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        transport = self._site.transport()
        url = self._site.url(self._path)
        while not self._stop.is_set():
            found = loaded(
                lambda state: dcp.load(
                    state, storage_reader=S3StorageReader(url, transport=transport)
                ),
                _versions(),
                False,
            )
            self.seen[found] += 1


def _versions() -> set[int]:
    return {OLD, *range(_FIRST, _FIRST + SAVERS)}


def _wrong(race: Race, told: Sequence[str], found: str, seen: Counter[str]) -> str | None:
    """What breaks the promise."""
    winners = [name_of(_FIRST + n) for n, one in enumerate(told) if one == "won"]
    if winners != [found]:
        return f"{winners} won, {found} is there: {told}"
    allowed = {"won", "CommitConflictError", "CheckpointExistsError"}
    if odd := [one for one in told if one not in allowed]:
        return f"losers were told {odd}"
    may_see = {found, name_of(OLD)} if race.over else {found, ABSENT, INCOMPLETE}
    for one in seen:
        replaced = race.over and any(one.startswith(f"raised {name}") for name in _REPLACED)
        if one not in may_see and not replaced:
            return f"a reader got: {one}"
    return None


def run(seed: int, runs: int) -> Report:
    """So many races."""
    silence()
    report = Report("races", "R6", seed)
    choose = random.Random(seed)
    context = fork_server()
    with SeaweedServer() as server, tempfile.TemporaryDirectory() as name:
        bucket = "races-" + secrets.token_hex(6)
        server.create_bucket(bucket)
        site = Site.on(server, bucket)
        transport = site.transport()
        with Contestants(context, site, sorted({SAVERS, SAVERS // 2}), SAVERS) as processes:
            for number in range(runs):
                race, path = RACES[number % len(RACES)], f"run-{number}"
                if race.over:
                    store(transport, site.url(path), OLD, False)
                entries = race.entries(path)
                threads = choose.random() < 0.5
                with Readers(site, path) as readers:
                    told = by_threads(site, entries) if threads else processes.race(entries)
                found, problem = judged(
                    transport, bucket, path, Path(name) / "local", _versions(), False
                )
                problem = problem or _wrong(race, told, found, readers.seen)
                keys = keys_of(transport, bucket, path)
                if problem is None and len(keys) != 2:
                    problem = f"something stays behind: {keys}"
                if problem:
                    how = "threads" if threads else "processes"
                    report.violations.append(f"round {number}, {race.name}, {how}: {problem}")
                report.add("violated" if problem else "one winner")
                _count(report, race, readers.seen)
                transport.delete(bucket, keys)
    return report


def _count(report: Report, race: Race, seen: Counter[str]) -> None:
    """Note what readers got; these are no runs."""
    for one, count in seen.items():
        if one.startswith("raised "):
            name = one.split(":")[0].removeprefix("raised ")
        else:
            name = {name_of(OLD): "old", ABSENT: ABSENT, INCOMPLETE: INCOMPLETE}.get(one, "new")
        report.outcomes[f"loads that got {name}"] += count


def main(argv: Sequence[str] | None = None) -> int:
    return _main(run, 200, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
