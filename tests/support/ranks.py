"""Runs a function on several gloo ranks, each a process, and always comes back."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

COLLECTIVE_SECONDS = 60


class RankError(RuntimeError):
    """A rank failed in a way that cannot be pickled, hung, or died."""


@dataclass(frozen=True)
class Outcome:
    """What one rank came to: a value, or what it raised."""

    value: Any = None
    error: BaseException | None = None

    def get(self) -> Any:
        """The value; raises what the rank raised."""
        if self.error is not None:
            raise self.error
        return self.value


def run_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    environment: Mapping[str, str] | None = None,
    timeout: float = 150.0,
) -> list[Outcome]:
    """Call ``fn(*args)`` on each rank of a new gloo group; what they came to, by rank.

    fn: a function of a module (it is sent by name). It finds its rank in torch.distributed.
    environment: variables to set before anything is imported.
    timeout: seconds after which all ranks are killed; those without an outcome get a RankError.
    """
    context = multiprocessing.get_context("spawn")
    outcomes: list[Outcome | None] = [None] * world_size
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        ends: dict[Connection, int] = {}
        processes = []
        try:
            for rank in range(world_size):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_be_rank,
                    args=(theirs, rank, world_size, str(Path(folder) / "store"), environment or {}),
                )
                process.start()
                theirs.close()
                processes.append(process)
                ends[ours] = rank
                ours.send_bytes(pickle.dumps((fn, args)))
            _collect(ends, outcomes, time.monotonic() + timeout)
        finally:
            for process in processes:
                _kill_group(process.pid)
                process.join()
            for end in ends:
                end.close()
    return [
        outcome or Outcome(error=RankError(f"rank {rank} gave no answer within {timeout:g} s"))
        for rank, outcome in enumerate(outcomes)
    ]


def run_checks(
    world_size: int,
    checks: Mapping[str, tuple[Any, ...]],
    environment: Mapping[str, str] | None = None,
    timeout: float = 150.0,
) -> dict[str, list[Outcome]]:
    """Several functions in turn on one group of ranks, since starting ranks is slow.

    checks: name to ``(fn, *args)``.
    Returns, for each name, what each rank came to. An error in one check does not stop the
    next one.
    """
    answers = run_ranks(
        _call_each, world_size, dict(checks), environment=environment, timeout=timeout
    )
    return {
        name: [answer if answer.error else answer.value[name] for answer in answers]
        for name in checks
    }


def errors_of(outcomes: list[Outcome]) -> dict[int, BaseException]:
    """What failed on which rank, if all ranks were told the same."""
    from torch.distributed.checkpoint.api import CheckpointException

    told: list[dict[int, BaseException]] = []
    for outcome in outcomes:
        assert isinstance(outcome.error, CheckpointException), f"{outcome!r}"
        told.append({rank: wrapped[0] for rank, wrapped in outcome.error.failures.items()})
    first = {rank: (type(error), str(error)) for rank, error in told[0].items()}
    for other in told[1:]:
        assert {rank: (type(error), str(error)) for rank, error in other.items()} == first
    return told[0]


def _call_each(checks: dict[str, tuple[Any, ...]]) -> dict[str, Outcome]:
    import torch.distributed as dist

    results = {}
    for name, (fn, *args) in checks.items():
        results[name] = _picklable(_call(fn, args))
        dist.barrier()
    return results


def _collect(
    ends: Mapping[Connection, int], outcomes: list[Outcome | None], deadline: float
) -> None:
    waiting = dict(ends)
    while waiting:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            return
        for end in ready:
            rank = waiting.pop(end)  # type: ignore[call-overload]
            try:
                outcomes[rank] = pickle.loads(end.recv_bytes())  # type: ignore[union-attr]
            except (EOFError, ConnectionError):
                outcomes[rank] = Outcome(error=RankError(f"rank {rank} died without an answer"))


def _kill_group(pid: int | None) -> None:
    """Kill a rank and what it started; it made itself the leader of a group."""
    if pid is None:
        return
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _be_rank(
    end: Connection, rank: int, world_size: int, store: str, environment: Mapping[str, str]
) -> None:
    os.setsid()
    os.environ.update(environment)
    os.environ.update(GLOO_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1", RANK=str(rank))
    from support import canary  # after the environment is set

    canary.watch()
    fn, args = pickle.loads(end.recv_bytes())
    threading.Thread(target=_die_with_parent, args=(end,), daemon=True).start()
    outcome = _picklable(_call(_in_group, (rank, world_size, store, fn, args)))
    shown = canary.leaks()
    if shown:
        outcome = Outcome(error=RankError(f"secrets show up on rank {rank}: {shown}"))
    end.send_bytes(pickle.dumps(outcome))
    # Until the parent has seen all answers: the file of the store is shared.
    threading.Event().wait()


def _die_with_parent(end: Connection) -> None:
    end.poll(None)
    os.killpg(os.getpid(), signal.SIGKILL)


def _in_group(
    rank: int, world_size: int, store: str, fn: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=COLLECTIVE_SECONDS),
    )
    return fn(*args)


def _call(fn: Callable[..., Any], args: Any) -> Outcome:
    try:
        return Outcome(value=fn(*args))
    except AssertionError:
        return Outcome(error=RankError(traceback.format_exc()))
    except BaseException as error:  # noqa: BLE001 - it goes to the parent
        return Outcome(error=error)


def _picklable(outcome: Outcome) -> Outcome:
    try:
        pickle.loads(pickle.dumps(outcome))
    except Exception as error:  # noqa: BLE001 - a pickle may raise anything
        text = "".join(traceback.format_exception(outcome.error)) if outcome.error else outcome
        return Outcome(error=RankError(f"cannot be sent ({error}): {text}"))
    return outcome
