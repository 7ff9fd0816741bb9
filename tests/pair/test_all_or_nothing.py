"""A save over an old checkpoint fails at each of its requests: the old or the new one, whole."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, failures, open_uploads, quiet, randn
from support.proxy import Fault, FaultProxy, Request
from support.transports import Call, Tap
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp.exceptions import (
    AccessDeniedError,
    CommitUnknownError,
    EndpointError,
    StorageError,
)

pytestmark = pytest.mark.filterwarnings("ignore:the checkpoint at .* is complete")

MIB = 1024**2
State = dict[str, Any]


def model(seed: int, size: int = 1000) -> State:
    return {"large": randn(size, seed=seed), "small": randn(100, seed=seed + 1), "step": seed}


def outcome(action: Callable[[], Any]) -> BaseException | None:
    """What the save raised, if it did."""
    try:
        action()
    except CheckpointException as error:
        (sole,) = failures(error)
        return sole
    return None


def holds(place: Place, path: str, folder: Path, *candidates: State) -> State:
    """The one of the candidates that is stored, according to our reader and to torch's own."""
    ours, theirs = blank(candidates[0]), blank(candidates[0])
    place.load(ours, path)
    with quiet():
        dcp.load(theirs, storage_reader=dcp.FileSystemReader(place.copy_down(path, folder)))
    (found,) = [state for state in candidates if state["step"] == ours["step"]]
    assert_same(ours, found)
    assert_same(theirs, found)
    return found


def check(error: BaseException | None, found: State, old: State, new: State) -> None:
    """The promise of a save: what it says is so."""
    if error is None:
        assert found is new, "the save reported success"
    elif not isinstance(error, (CommitUnknownError, KeyboardInterrupt)):
        assert found is old, f"the save failed: {error!r}"


# --- in memory: the transport's calls ---------------------------------------------------


class Strike:
    """A hook that raises at the call of a number, counted from 0: once, or at all like it."""

    def __init__(self, number: int, error: BaseException, *, always: bool) -> None:
        self.number = number
        self.error = error
        self.always = always
        self.struck = 0
        self._seen: list[Call] = []
        self._lock = threading.Lock()

    def __call__(self, call: Call) -> None:
        with self._lock:
            self._seen.append(call)
            mine = len(self._seen) == self.number + 1
            if self.always and len(self._seen) > self.number:
                first = self._seen[self.number]
                mine = (call.operation, call.keys) == (first.operation, first.keys)
            self.struck += mine
        if mine:
            raise self.error


ERRORS = [
    AccessDeniedError("may not"),
    StorageError("the server refused: InternalError"),
    EndpointError("the connection broke"),
    MemoryError("no room"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("threads", [1, 3])
def test_each_call_of_an_overwrite_fails_in_turn(
    memory: Place, tmp_path: Path, threads: int, error: BaseException, when: str, always: bool
) -> None:
    number = 0
    while True:
        old, new, path = model(number), model(-1 - number), f"run{number}"
        memory.save(old, path, thread_count=threads)
        strike = Strike(number, error, always=always)
        tap = Tap(memory.transport, **{when: strike})
        raised = outcome(lambda: memory.over(tap).save(new, path, thread_count=threads))  # noqa: B023
        if not strike.struck:
            break
        found = holds(memory, path, tmp_path / path, old, new)
        check(raised, found, old, new)
        if not tap.of("put"):
            assert found is old
        number += 1
    assert number == 4 + threads, "its calls: head, uploads, get, put, delete"


# --- over HTTP: every request of a save with a multipart object -------------------------


Kind = tuple[str, int | None, bool]


def kind(request: Request) -> Kind:
    """What tells the requests of one save apart, and is the same in the next save."""
    return request.operation, request.part, request.key.endswith(".metadata")


@dataclass
class StrikeHTTP:
    """Lets requests of a kind fail: the first one, or ``always``.

    ``then``: what becomes of all requests after that.
    """

    target: Kind
    fault: Fault
    always: bool = False
    then: Fault | None = None
    struck: int = 0

    def __call__(self, request: Request) -> Fault | None:
        if self.struck and self.then is not None:
            return self.then
        if kind(request) != self.target or (self.struck and not self.always):
            return None
        self.struck += 1
        return self.fault

    def may_leave(self) -> bool:
        """Whether something stays behind that nobody can know of, or remove."""
        nameless = self.fault is Fault.LOSE and self.target[0] == "CreateMultipartUpload"
        return self.then is not None or nameless


MODES: dict[str, dict[str, Any]] = {
    "refused": {"fault": Fault.DENY, "always": True},
    "failing": {"fault": Fault.FAIL, "always": True},
    "reset": {"fault": Fault.CUT, "always": True},
    "reset once": {"fault": Fault.CUT},
    "unanswered": {"fault": Fault.LOSE, "always": True},
    "unanswered once": {"fault": Fault.LOSE},
    "late": {"fault": Fault.LATE, "always": True},
    "late once": {"fault": Fault.LATE},
    "server gone": {"fault": Fault.CUT, "then": Fault.CUT},
    "server gone unanswered": {"fault": Fault.LOSE, "then": Fault.CUT},
}

OVERWRITE = {
    ("HeadObject", None, True),
    ("CreateMultipartUpload", None, False),
    ("UploadPart", 1, False),
    ("UploadPart", 2, False),
    ("CompleteMultipartUpload", None, False),
    ("PutObject", None, False),
    ("GetObject", None, True),
    ("PutObject", None, True),
    ("DeleteObjects", None, False),
}


@pytest.mark.server
@pytest.mark.parametrize("mode", MODES)
def test_each_request_of_an_overwrite_fails_in_turn(
    on_seaweed: Place, proxy: FaultProxy, tmp_path: Path, mode: str
) -> None:
    place = proxy.before(on_seaweed, max_attempts=2, pause_factor=0)
    size = 6 * MIB // 4  # two parts
    for seed in (-2, -1):
        proxy.requests.clear()
        place.save(model(seed, size), "run", thread_count=2)
    assert {kind(request) for request in proxy.requests} == OVERWRITE
    old = model(-1, size)
    for number, target in enumerate(sorted(OVERWRITE, key=str)):
        before, opened = on_seaweed.listing(), open_uploads(on_seaweed)
        proxy.judge = strike = StrikeHTTP(target, **MODES[mode])
        new = model(number, size)
        raised = outcome(lambda: place.save(new, "run", thread_count=2))  # noqa: B023
        assert strike.struck
        found = holds(on_seaweed, "run", tmp_path / str(number), old, new)
        check(raised, found, old, new)
        if not (strike.always or strike.then):
            assert raised is None, f"{target}: one lost answer is no failure"
        if raised and not (strike.may_leave() or isinstance(raised, CommitUnknownError)):
            assert on_seaweed.listing() == before, target
        if not strike.may_leave():
            assert open_uploads(on_seaweed) == opened, target
        if strike.fault is Fault.LATE:
            proxy.release()
            found = holds(on_seaweed, "run", tmp_path / f"{number} late", old, new)
            check(raised, found, old, new)
            if target == ("PutObject", None, True):
                assert found is new, "the commit landed late, and its data is still there"
        old = found


# --- how many requests a save takes -----------------------------------------------------


@pytest.mark.server
def test_the_requests_of_a_small_save(on_seaweed: Place, proxy: FaultProxy) -> None:
    place = proxy.before(on_seaweed)
    commit, data = "run/.metadata", "run/__0_0_"
    place.save(model(1), "run")
    assert requests_of(proxy) == [
        ("HeadObject", commit),
        ("PutObject", data),
        ("PutObject", commit),
    ]
    place.save(model(2), "run")
    assert requests_of(proxy) == [
        ("HeadObject", commit),
        ("PutObject", data),
        ("GetObject", commit),
        ("PutObject", commit),
        ("DeleteObject", data),
    ]


def requests_of(proxy: FaultProxy) -> list[tuple[str, str]]:
    """What came since the last look: operations, and keys as far as they are known before."""
    found = [(r.operation, re.sub("[0-9a-f]{16}.distcp$", "", r.key)) for r in proxy.requests]
    proxy.requests.clear()
    return found
