"""Runs spread over processes: most of a run's time is spent waiting."""

from __future__ import annotations

import multiprocessing
import os
import random
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from torch_s3dcp.testing.servers import SeaweedServer

from ._checkpoints import Site, silence
from ._faulted import Result, Run, Worker

_BATCH = 20
# Memory of a process ends up in pieces: after so many batches others take their place.
_MOST_BATCHES = 10
# Fewer are not worth the start of processes.
_FEW = 200

#: Draws run ``number`` of a campaign.
Draw = Callable[[random.Random, int], Run]

_worker: Worker | None = None


def _begin(site: Site) -> None:
    global _worker
    silence()
    _worker = Worker(site, f"p{os.getpid()}")


def _batch(draw: Draw, seed: int, numbers: range) -> list[tuple[Run, Result]]:
    assert _worker is not None
    done = []
    for number in numbers:
        # Each run has its own generator: one of them can be repeated alone.
        choose = random.Random(f"{seed}/{number}")
        run = draw(choose, number)
        done.append((run, _worker.run(run, choose.getrandbits(32))))
    return done


def perform(draw: Draw, seed: int, runs: int) -> Iterator[tuple[Run, Result]]:
    """All runs of a campaign, on a server of its own.

    Args:
        draw: A function of a module: it is sent to the processes.
    """
    with _site() as site:
        if runs <= _FEW:
            _begin(site)
            yield from _batch(draw, seed, range(runs))
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        workers = int(os.environ.get("CAMPAIGN_WORKERS", "4"))
        # All at once: a pool that replaces them one by one may wait for ever (CPython 115634).
        for first in range(0, runs, workers * _BATCH * _MOST_BATCHES):
            last = min(runs, first + workers * _BATCH * _MOST_BATCHES)
            starts = range(first, last, _BATCH)
            batches = [range(start, min(last, start + _BATCH)) for start in starts]
            with ProcessPoolExecutor(workers, context, _begin, (site,)) as pool:
                work = zip(*[(draw, seed, batch) for batch in batches], strict=True)
                for done in pool.map(_batch, *work):
                    yield from done


@contextmanager
def _site() -> Iterator[Site]:
    with SeaweedServer() as server:
        bucket = "campaign-" + secrets.token_hex(4)
        server.create_bucket(bucket)
        yield Site.on(server, bucket)
