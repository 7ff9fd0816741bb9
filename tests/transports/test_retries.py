"""The table of retries, the effort of a request, and patience: pure, with a clock of their own."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.exceptions import DeadlineError, EndpointError
from torch_s3dcp.transports.effort import Effort, Halt, current, halted_by, joined, making
from torch_s3dcp.transports.patience import FREE, QUICK, SHARE, WORKING, Guard, Patience
from torch_s3dcp.transports.retries import LEAST_RATE, TABLE, Kind, Limits, documented, pause

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "configuration.md"
kinds = st.sampled_from(Kind)
# Kinds that have no limit of their own.
usual = st.sampled_from([kind for kind, row in TABLE.items() if row.most is None])


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def effort_of(clock: Clock, limits: Limits, seed: int = 0) -> Effort:
    choose = random.Random(seed).uniform
    return Effort(limits, clock=clock, choose=choose, sleep=clock.sleep)


def test_the_table_is_in_the_docs() -> None:
    assert "\n".join(documented()) in PAGE.read_text(encoding="utf-8")


def test_every_kind_has_a_row() -> None:
    assert set(TABLE) == set(Kind)


@given(kinds, st.integers(1, 2000), st.floats(0, 1))
def test_a_pause_stays_within_its_row(kind: Kind, failures: int, share: float) -> None:
    row = TABLE[kind]
    seconds = pause(kind, failures, lambda least, most: least + share * (most - least))
    assert 0 <= seconds <= row.cap
    if failures <= row.at_once:
        assert seconds == 0


def test_pauses_keep_within_the_bars() -> None:
    def longest(kind: Kind, failures: int) -> float:
        return sum(pause(kind, n, lambda _, most: most) for n in range(1, failures + 1))

    def shortest(kind: Kind, failures: int) -> float:
        return sum(pause(kind, n, lambda least, _: least) for n in range(1, failures + 1))

    assert longest(Kind.THROTTLED, 4) <= 2
    assert longest(Kind.THROTTLED, 8) <= 7.6
    # With ten tries a server may be gone for ten seconds.
    assert shortest(Kind.UNREACHABLE, 9) >= 10


@given(st.lists(kinds, min_size=1), st.integers(1, 30))
def test_tries_are_counted(failed: list[Kind], attempts: int) -> None:
    clock = Clock()
    effort = effort_of(clock, Limits(attempts, give_up_after=1e9))
    tries = 1
    for kind in failed:
        if not effort.failed(kind, EndpointError("no")):
            break
        tries += 1
    assert tries <= attempts
    assert len(clock.slept) < attempts
    for kind, row in TABLE.items():
        assert failed[:tries].count(kind) <= (row.most or attempts)


@given(st.lists(st.tuples(usual, st.floats(0, 30), st.integers(0, 10**6)), max_size=300))
def test_every_effort_ends_by_its_deadline(steps: list[tuple[Kind, float, int]]) -> None:
    clock = Clock()
    effort = effort_of(clock, Limits(attempts=1000, give_up_after=60))
    moved = 0
    for kind, seconds, count in steps:
        with effort.working():
            clock.now += min(seconds, max(0.0, effort.left))
        clock.now += 1000  # nobody reads
        moved += count
        effort.progress(moved)
        over = effort.left <= 0
        try:
            assert effort.failed(kind, EndpointError("no", bucket="b"))
        except DeadlineError:
            assert effort.left <= TABLE[kind].cap, "no sooner than a pause before its end"
            return
        assert not over
        assert 0 < effort.left <= 60 + moved / LEAST_RATE


def test_time_in_which_nobody_waits_is_free() -> None:
    clock = Clock()
    effort = effort_of(clock, Limits(give_up_after=10))
    clock.now += 10_000
    assert effort.failed(Kind.BROKEN, EndpointError("no"))
    with effort.working():
        clock.now += 9
    effort.waited(2)
    with pytest.raises(DeadlineError, match="give_up_after"):
        effort.failed(Kind.BROKEN, EndpointError("no"))


def test_a_halt_ends_pauses() -> None:
    halt = Halt()
    ended: list[int] = []
    with halt.ending(lambda: ended.append(1)):
        halt.set()
    with halt.ending(lambda: ended.append(2)):
        pass
    assert ended == [1, 2]
    with halted_by(halt):
        effort = Effort(Limits(pause_factor=1e9, give_up_after=1e12))
    assert not effort.failed(Kind.UNREACHABLE, EndpointError("no"))


def test_a_halt_ends_nothing_that_was_left() -> None:
    """Who has left may have handed its connection to somebody else."""
    halt, ending, left = Halt(), threading.Event(), threading.Event()

    def end() -> None:
        ending.set()
        ended.append(left.wait(0.5))

    def request() -> None:
        with halt.ending(end):
            entered.set()
            ending.wait(10)
        left.set()

    ended: list[bool] = []
    entered = threading.Event()
    thread = threading.Thread(target=request)
    thread.start()
    assert entered.wait(10)
    halt.set()
    thread.join(10)
    assert ended == [False]


def test_requests_of_a_thread_join_its_effort() -> None:
    outer = Effort(Limits(7))
    with making(outer), joined(Limits(3)) as inner:
        assert inner is outer is current()
    with joined(Limits(3)) as alone:
        assert alone is not outer
        assert alone.limits.attempts == 3
    assert current() is not alone


# ---- patience


@given(st.lists(st.sampled_from(["begin", "spend", "answer"]), max_size=400), st.floats(0.1, 100))
def test_patience_keeps_its_budget(steps: list[str], longest: float) -> None:
    patience = Patience(longest)
    begun = given_up = 0
    for step in steps:
        if step == "begin":
            patience.begin()
            begun += 1
        elif step == "spend":
            given_up += patience.spend()
        else:
            patience.answered(QUICK, 0.5)
            patience.answered(WORKING, 0.5)
        assert given_up <= FREE + SHARE * begun + 1
        assert 0 < patience.wait(QUICK, given_up) <= longest
        if patience.spent:
            assert patience.wait(QUICK, 0) == longest
            assert patience.least_rate(0) == 0


def test_patience_grows() -> None:
    patience = Patience(60)
    assert [patience.wait(QUICK, times) for times in range(6)] == [2, 4, 8, 16, 32, 60]
    patience.answered(QUICK, 3)
    assert patience.wait(QUICK, 0) == 12, "a slow server is not hurried"
    for _ in range(1000):
        patience.answered(QUICK, 0.01)
    assert patience.wait(QUICK, 0) == QUICK


def test_patience_with_a_server_that_works_is_what_others_needed() -> None:
    patience = Patience(60)
    assert [patience.wait(WORKING, times) for times in range(4)] == [10, 20, 40, 60]
    patience.answered(QUICK, 0.1)
    assert patience.wait(WORKING, 0) == 10
    patience.answered(WORKING, 1.5)
    assert [patience.wait(WORKING, times) for times in range(2)] == [4.5, 9]
    patience.answered(WORKING, 8)
    assert patience.wait(WORKING, 0) == 24
    for _ in range(1000):
        patience.answered(WORKING, 0.01)
    assert patience.wait(WORKING, 0) == 2


def test_patience_is_asked_anew_while_waiting() -> None:
    patience = Patience(60)
    guard, _, timeouts = guard_of(patience)
    guard.send()
    guard.answer(WORKING)
    guard.stalled()
    assert timeouts == [2], "nothing is known of this server yet"
    patience.answered(WORKING, 1.0)
    with pytest.raises(TimeoutError, match=r"for 4\.0 s"):
        guard.stalled()


def test_what_is_usual_is_asked_for_once() -> None:
    patience = Patience(60)
    assert patience.least_rate(0) == 100_000
    for _ in range(50):
        patience.finished(10**8, 1.0)
    assert patience.least_rate(0) == pytest.approx(5_000_000)
    assert patience.least_rate(1) == 50_000


def guard_of(patience: Patience) -> tuple[Guard, Clock, list[float]]:
    clock, timeouts = Clock(), []
    effort = effort_of(clock, Limits(give_up_after=10_000))
    return Guard(patience, effort, timeouts.append, clock), clock, timeouts


def test_a_stalled_connection_is_given_up_or_waited_for() -> None:
    patience = Patience(60)
    guard, _, timeouts = guard_of(patience)
    guard.send()
    guard.answer(QUICK)
    guard.body()
    assert timeouts[-1] == 2
    with pytest.raises(TimeoutError):
        guard.stalled()
    while patience.spend():
        pass
    guard, _, timeouts = guard_of(patience)
    guard.send()
    guard.answer(QUICK)
    for _ in range(29):
        guard.stalled()
    assert set(timeouts) == {2}, "too many were given up"
    with pytest.raises(TimeoutError, match=r"for 60\.0 s"):
        guard.stalled()


def test_who_may_not_be_given_up_is_waited_for_further() -> None:
    patience = Patience(60)
    guard, _, timeouts = guard_of(patience)
    guard.send()
    guard.answer(QUICK)
    while patience.spend():
        pass
    for _ in range(29):
        guard.stalled()  # not given up, although it was meant to be
    guard.received(5, 1.0)
    for _ in range(29):
        guard.stalled()
    assert set(timeouts) == {2}
    with pytest.raises(TimeoutError):
        guard.stalled()


@pytest.mark.parametrize(("rate", "slow"), [(20_000, True), (90_000, True), (200_000, False)])
def test_a_slow_body_is_given_up(rate: int, slow: bool) -> None:
    guard, _, _ = guard_of(Patience(60))
    guard.send()
    guard.answer(QUICK)
    guard.body()
    for _ in range(19):
        guard.received(rate // 10, 0.1)
        guard.check()
    guard.received(rate // 10, 0.2)  # two seconds of waiting
    if slow:
        with pytest.raises(TimeoutError, match="too few bytes"):
            guard.check()
    else:
        guard.check()


def test_what_the_server_works_on_is_waited_for() -> None:
    """S3 answers a copy at once, and sends blanks until it is done."""
    guard, _, timeouts = guard_of(Patience(60))
    guard.send()
    guard.answer(None)
    guard.body()
    for _ in range(100):
        guard.received(1, 5.0)
        guard.check()
    for _ in range(29):
        guard.stalled()
    assert set(timeouts) == {2}
    with pytest.raises(TimeoutError):
        guard.stalled()


@pytest.mark.parametrize("way", ["sent", "head"])
def test_a_connection_that_crawls_ends_by_the_deadline(way: str) -> None:
    clock = Clock()
    effort = effort_of(clock, Limits(give_up_after=30))
    guard = Guard(Patience(60), effort, [].append, clock)
    guard.send()
    if way == "head":
        guard.answer(QUICK)

    def crawl() -> None:
        while clock.now < 1100:
            clock.now += 1
            if way == "head":
                guard.received(1, 1.0)
                guard.check()
            else:
                guard.sent(1)

    with effort.working(), pytest.raises(TimeoutError):
        crawl()
    assert 1030 <= clock.now <= 1031


def test_a_slow_reader_is_no_slow_server() -> None:
    guard, clock, _ = guard_of(Patience(60))
    guard.send()
    guard.answer(QUICK)
    guard.body()
    for _ in range(100):
        clock.now += 60
        guard.check()
        guard.received(1000, 0.001)
    guard.check()
