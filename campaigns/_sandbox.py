"""A child process that a hostile sample may do anything to, and what it did to it."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch_s3dcp.exceptions import with_causes

# More than this, in bytes, was allocated on a sample's word: all samples are small.
_MUCH = 512 * 2**20
_ENDINGS = (signal.SIGALRM, signal.SIGPROF)


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Args:
        said: What the action returned, or the name of what it raised; empty: it did not end.
        effects: Of "imported", "hung", "crashed" and "allocated" those that were seen.
    """

    said: str
    effects: frozenset[str]


def in_child(
    action: Callable[[], str], *, seconds: int, room: int, lures: Collection[str] = ()
) -> Ended:
    """Carry out an action in a process of its own.

    Args:
        seconds: After these, of its own work, it hangs, and is ended.
        room: Bytes of address space that it may take beyond what is there.
        lures: Modules that nobody but a sample imports.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _be(action, send, seconds, room, lures)
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answer:
        told = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        hung = os.WTERMSIG(status) in _ENDINGS
        return Ended("", frozenset({"hung" if hung else "crashed"}))
    if not told:
        # It ended the process itself.
        return Ended("", frozenset({"crashed"}))
    found = json.loads(told)
    return Ended(found["said"], frozenset(found["effects"]))


def _be(
    action: Callable[[], str], send: int, seconds: int, room: int, lures: Collection[str]
) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    faulthandler.disable()
    for ending in _ENDINGS:
        signal.signal(ending, signal.SIG_DFL)
    # On a busy machine only the time counts that it worked; unless it waits for ever.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(6 * seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + room, now + room))
    before, effects = _resident(), set()
    try:
        said = action()
    except BaseException as error:  # noqa: BLE001 - whatever a sample does is an outcome
        said = f"{type(error).__module__}.{type(error).__name__}"
        if out_of_memory(error):
            effects.add("allocated")
    if said == OUT_OF_MEMORY or _resident() - before > _MUCH:
        effects.add("allocated")
    if any(name in sys.modules for name in lures):
        effects.add("imported")
    # Short enough for a pipe in one piece.
    os.write(send, json.dumps({"said": said[:2000], "effects": sorted(effects)}).encode())


#: What an action says if it was refused memory, though its error is of another kind.
OUT_OF_MEMORY = "out of memory"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what led to it, came of too little memory."""
    return any(
        isinstance(one, MemoryError) or "MemoryError" in str(one) or "allocate memory" in str(one)
        for one in with_causes(error)
    )


def _resident() -> int:
    """The most bytes of memory that the process has used at once."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
