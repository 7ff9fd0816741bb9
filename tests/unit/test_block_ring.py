"""Blocks are never filled again before all of them is released, and waiting always ends."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from torch_s3dcp.block_ring import Claim, Ring

SIZE = 10


class Memory(bytearray):
    """Memory of a block, whose end can be seen."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Waits(Exception):
    """The ring would have waited."""


class Uploads(RuleBasedStateMachine):
    """A stream whose bytes are numbered, and a transport that takes and releases them."""

    @initialize(limit=st.integers(1, 4))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.alive: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.asked = self.count = 0
        self.queued: list[tuple[Claim[bytearray], bytes]] = []
        self.position = self.sent = 0
        self.out: dict[int, tuple[bytearray, int, int]] = {}
        self.takes: list[list[int]] = []
        self.ring = Ring(self.make, SIZE, limit, self.proceed)

    def make(self) -> bytearray:
        made = Memory(SIZE)
        self.alive.add(made)
        return made

    def proceed(self) -> None:
        self.asked += 1
        if self.asked > 1:
            raise Waits

    def filled(self, claim: Claim[bytearray], wanted: int) -> None:
        assert 0 < claim.size <= wanted
        self.count += 1
        content = bytes([self.count % 256]) * claim.size
        claim.memory[claim.begin : claim.begin + claim.size] = content
        self.queued.append((claim, content))

    @rule(wanted=st.integers(1, 25))
    def claim(self, wanted: int) -> None:
        before = len(self.alive)
        claim = self.ring.claim(wanted)
        assert len(self.alive) <= max(self.limit, before)
        if claim is not None:
            self.filled(claim, wanted)

    @rule(wanted=st.integers(1, 25))
    def insist(self, wanted: int) -> None:
        self.asked = 0
        before = len(self.blocks_in_use())
        try:
            claim = self.ring.insist(wanted)
        except Waits:
            assert any(self.takes[:-1])
            assert before >= self.limit
        else:
            self.filled(claim, wanted)

    @precondition(lambda self: self.queued)
    @rule()
    def hand_out(self) -> None:
        claim, content = self.queued.pop(0)
        self.ring.hand_out(claim, self.position)
        for place in range(claim.size):
            self.out[self.position + place] = (claim.memory, claim.begin + place, content[0])
        self.position += claim.size

    @precondition(lambda self: self.position > self.sent)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        end = data.draw(st.integers(self.sent + 1, self.position))
        self.ring.taken(self.sent, end)
        self.takes.append(list(range(self.sent, end)))
        self.sent = end

    @precondition(lambda self: any(self.takes))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        take = data.draw(st.sampled_from([take for take in self.takes if take]))
        self.ring.release(take[0], len(take))
        for place in take:
            self.out.pop(place)
        take.clear()

    def blocks_in_use(self) -> set[int]:
        held = [claim.memory for claim, _ in self.queued]
        return {id(memory) for memory in (*held, *(memory for memory, _, _ in self.out.values()))}

    @invariant()
    def nothing_changes_before_its_release(self) -> None:
        if not hasattr(self, "ring"):
            return
        for claim, content in self.queued:
            assert claim.memory[claim.begin : claim.begin + claim.size] == content
        for memory, place, value in self.out.values():
            assert memory[place] == value


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def go() -> None:
    """Nothing stops."""


def full_ring(limit: int = 2) -> Ring[bytearray]:
    """All blocks are taken, each by a call of its own."""
    ring = Ring(lambda: bytearray(SIZE), SIZE, limit, go)
    for number in range(limit):
        ring.hand_out(ring.insist(SIZE), number * SIZE)
        ring.taken(number * SIZE, (number + 1) * SIZE)
    assert ring.claim(1) is None
    return ring


@pytest.fixture
def thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


def test_who_waits_gets_what_is_released(thread: ThreadPoolExecutor) -> None:
    ring = full_ring()
    waiting = thread.submit(ring.insist, SIZE)
    ring.release(0, SIZE)
    assert waiting.result(timeout=30).size == SIZE
    assert ring.claim(1) is None


def test_who_waits_is_told_of_the_failure(thread: ThreadPoolExecutor) -> None:
    ring = full_ring()
    waiting = thread.submit(ring.insist, SIZE)
    ring.give_up(OSError("first"))
    ring.give_up(OSError("second"))
    assert str(waiting.exception(timeout=30)) == "first"


def test_who_waits_ends_when_the_save_is_stopped(thread: ThreadPoolExecutor) -> None:
    stop = threading.Event()

    def proceed() -> None:
        if stop.is_set():
            raise Waits

    ring = Ring(lambda: bytearray(SIZE), SIZE, 1, proceed)
    ring.hand_out(ring.insist(SIZE), 0)
    ring.taken(0, 5)
    ring.taken(5, SIZE)
    waiting = thread.submit(ring.insist, SIZE)
    stop.set()
    assert isinstance(waiting.exception(timeout=30), Waits)


def test_blocks_beyond_the_limit_do_not_stay() -> None:
    made: list[int] = []

    def make() -> bytearray:
        made.append(1)
        return bytearray(SIZE)

    ring = Ring(make, SIZE, 2, go)
    for round_ in range(3):
        start = round_ * 5 * SIZE
        for number in range(5):
            ring.hand_out(ring.insist(SIZE), start + number * SIZE)
        ring.taken(start, start + 5 * SIZE)
        ring.release(start, 5 * SIZE)
    assert len(made) == 5 + 3 + 3


def test_a_second_release_is_refused() -> None:
    ring = full_ring()
    ring.hand_out(Ring(lambda: bytearray(SIZE), SIZE, 1, go).insist(SIZE), 100)
    ring.release(0, 5)
    with pytest.raises(ValueError, match="twice"):
        ring.release(0, SIZE)
