"""The pool of threads that receive: what it delivers, and that it ends."""

from __future__ import annotations

import threading
import time

import pytest

from torch_s3dcp.exceptions import EndpointError, TruncatedObjectError
from torch_s3dcp.fetching import FetchPool
from torch_s3dcp.filling import Fetch, Unwanted

BLOB = bytes(i % 251 for i in range(100_000))


class Stream:
    """A range of BLOB; may end early, or wait until it is closed."""

    def __init__(self, start: int, end: int, *, waits: bool = False) -> None:
        self.data = memoryview(BLOB)[start:end]
        self.waits = waits
        self.closed = threading.Event()
        self.retries = 2

    def readinto(self, buffer: memoryview) -> int:
        if self.waits:
            assert self.closed.wait(30)
            raise EndpointError("closed")
        count = min(len(buffer), len(self.data), 1000)
        buffer[:count] = self.data[:count]
        self.data = self.data[count:]
        return count

    def close(self) -> None:
        self.closed.set()


class Kept:
    """Keeps what passes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.content = b""

    def __len__(self) -> int:
        return self.size

    def put(self, content: memoryview) -> None:
        self.content = bytes(content)


def fetch(start: int, end: int, *targets, tag=None) -> Fetch:
    return Fetch("path", start, end, targets or (memoryview(bytearray(end - start)),), tag)


def open_blob(_path: str, start: int, end: int) -> Stream:
    return Stream(start, end)


def test_bytes_land_in_their_targets_in_order() -> None:
    first, last, kept = bytearray(10), bytearray(30), Kept(20)
    with FetchPool(open_blob, 2) as pool:
        pool.submit(fetch(5, 165, memoryview(first), Unwanted(100), kept, memoryview(last)))
        ended = pool.next()
    assert (ended.error, ended.retries) == (None, 2)
    assert bytes(first) == BLOB[5:15]
    assert kept.content == BLOB[115:135]
    assert bytes(last) == BLOB[135:165]
    assert pool.scratch == 100
    assert pool.peak_bytes == 160


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_all_requests_end_once(concurrency: int) -> None:
    with FetchPool(open_blob, concurrency) as pool:
        for number in range(50):
            pool.submit(fetch(number, number + 500, tag=number))
        ended = [pool.next() for _ in range(50)]
        assert pool.pending == 0
    assert sorted(one.fetch.tag for one in ended) == list(range(50))
    assert all(bytes(o.fetch.targets[0]) == BLOB[o.fetch.start : o.fetch.end] for o in ended)


def test_no_more_are_in_flight_than_allowed_after_each_change() -> None:
    flying, most = 0, 0
    lock = threading.Lock()

    class Counted(Stream):
        def close(self) -> None:
            nonlocal flying
            with lock:
                flying -= not self.closed.is_set()
            super().close()

    def opened(_path: str, start: int, end: int) -> Stream:
        nonlocal flying, most
        with lock:
            flying += 1
            most = max(most, flying)
        time.sleep(0.001)
        return Counted(start, end)

    with FetchPool(opened, 2) as pool:
        for wanted in (2, 6, 1, 3):
            pool.resize(wanted)
            for number in range(30):
                pool.submit(fetch(number, number + 100))
            # Those above a lower limit end with what they have in hand.
            ended = [pool.next() for _ in range(15)]
            with lock:
                most = 0
            ended += [pool.next() for _ in range(15)]
            assert not any(one.error for one in ended)
            assert most <= wanted


def test_errors_come_out_of_next() -> None:
    def broken(_path: str, start: int, end: int) -> Stream:
        raise EndpointError("no route")

    with FetchPool(broken, 2) as pool:
        pool.submit(fetch(0, 10))
        assert isinstance(pool.next().error, EndpointError)
    with FetchPool(lambda _path, start, end: Stream(start, end - 1), 2) as pool:
        pool.submit(fetch(0, 10))
        error = pool.next().error
    assert isinstance(error, TruncatedObjectError)
    assert error.byte_range == (0, 10)


def test_leaving_ends_what_runs_and_begins_nothing() -> None:
    opened: list[Stream] = []

    def waiting(_path: str, start: int, end: int) -> Stream:
        opened.append(Stream(start, end, waits=True))
        return opened[-1]

    def interrupted() -> None:
        with FetchPool(waiting, 3) as pool:
            for number in range(20):
                pool.submit(fetch(number, number + 10))
            while len(opened) < 3:
                time.sleep(0.001)
            time.sleep(0.05)
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begun < 10
    assert len(opened) == 3
    assert all(stream.closed.is_set() for stream in opened)


def test_a_thread_that_cannot_start_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def exhausted() -> None:
        with FetchPool(open_blob, 4) as pool:
            pool.submit(fetch(0, 10))
            monkeypatch.setattr(threading.Thread, "start", start)
            for number in range(10):
                pool.submit(fetch(number, number + 10))

    with pytest.raises(RuntimeError, match="can't start new thread"):
        exhausted()
