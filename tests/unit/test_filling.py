"""A request's targets: filled, verified, and filled again where bytes were damaged."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.checks import Check, Checker
from torch_s3dcp.checksums import CRC64, ZIP_CRC
from torch_s3dcp.exceptions import IntegrityError
from torch_s3dcp.fetching import FetchPool
from torch_s3dcp.filling import Fetch, Unwanted

BLOB = bytes(i * 7 % 253 for i in range(600))


class Kept:
    """Keeps what passed last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.content = b""

    def __len__(self) -> int:
        return self.size

    def put(self, content: memoryview) -> None:
        self.content = bytes(content)


class Damaging:
    """Serves BLOB; each position in ``flips`` arrives wrong so many times."""

    def __init__(self, flips: dict[int, int]) -> None:
        self.flips = flips
        self.opened: list[tuple[int, int]] = []

    def __call__(self, _path: str, start: int, end: int) -> _Range:
        self.opened.append((start, end))
        return _Range(self, start, end)


class _Range:
    retries = 0

    def __init__(self, source: Damaging, start: int, end: int) -> None:
        self.source, self.position, self.end = source, start, end

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), self.end - self.position, 97)
        buffer[:count] = BLOB[self.position : self.position + count]
        for place, left in self.source.flips.items():
            if left and self.position <= place < self.position + count:
                buffer[place - self.position] ^= 1
                self.source.flips[place] -= 1
        self.position += count
        return count

    def close(self) -> None:
        pass


def crc(start: int, end: int) -> int:
    return CRC64.update(memoryview(BLOB)[start:end], 0)


@st.composite
def requests(draw):
    """Cuts of targets, cuts of checks, and which bytes arrive damaged."""
    edges = st.lists(st.integers(1, 599), max_size=8, unique=True).map(
        lambda inner: [0, *sorted(inner), 600]
    )
    targets, checks = draw(edges), draw(edges)
    kinds = draw(st.lists(st.sampled_from("mku"), min_size=len(targets) - 1, max_size=9))
    left_out = draw(st.sets(st.integers(0, len(checks) - 2)))
    flips = draw(st.dictionaries(st.integers(0, 599), st.integers(1, 2), max_size=3))
    return targets, checks, kinds, left_out, flips


@given(requests())
def test_what_is_checked_is_right_in_the_end(request) -> None:
    edges, cuts, kinds, left_out, flips = request
    checked = [
        (a, b) for number, (a, b) in enumerate(itertools.pairwise(cuts)) if number not in left_out
    ]
    # Two flips of one check would be two tries of the three each.
    flips = {
        place: times
        for place, times in flips.items()
        if any(a <= place < b for a, b in checked)
        and sum(any(a <= p < b and a <= place < b for a, b in checked) for p in flips) == 1
    }
    makers = {"m": lambda n: memoryview(bytearray(n)), "k": Kept, "u": Unwanted}
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    targets = [makers[kind](size) for kind, size in zip(kinds, sizes, strict=False)]
    checks = [Check(a, b, crc(a, b), CRC64) for a, b in checked]
    source, reconnected = Damaging(dict(flips)), []
    with FetchPool(source, 1, lambda: reconnected.append(1)) as pool:
        pool.submit(Fetch("path", 0, 600, targets, None, checks))
        ended = pool.next()
    assert ended.error is None
    for target, start, size in zip(targets, edges, sizes, strict=False):
        if not isinstance(target, Unwanted):
            found = bytes(target) if isinstance(target, memoryview) else target.content
            assert found == BLOB[start : start + size]
    assert (ended.damaged > 0) == bool(flips)
    assert len(reconnected) == ended.damaged == len(source.opened) - 1
    assert all(end == 600 for _, end in source.opened)
    assert (ended.again > 0) == bool(flips)


def test_damage_that_stays_is_an_error_with_its_range() -> None:
    source = Damaging({250: 10**9})
    checks = [Check(a, a + 100, crc(a, a + 100), CRC64) for a in range(0, 600, 100)]
    with FetchPool(source, 1) as pool:
        memory = memoryview(bytearray(600))
        pool.submit(Fetch("path", 0, 600, [memory], None, checks))
        ended = pool.next()
    assert isinstance(ended.error, IntegrityError)
    assert ended.error.byte_range == (200, 300)
    assert (ended.error.attempts, ended.damaged) == (3, 3)
    assert source.opened == [(0, 600), (200, 600), (200, 600)]


@pytest.mark.parametrize("bad", [0, 200, 399])
def test_damage_is_found_without_going_through_all_again_and_again(bad: int) -> None:
    hashed: list[int] = []

    def update(block: memoryview, before: int) -> int:
        hashed.append(len(block))
        return CRC64.update(block, before)

    kind = replace(CRC64, update=update)
    data = bytearray(random.Random(1).randbytes(400 * 16))
    cuts = range(0, len(data), 16)
    checks = [Check(a, a + 16, CRC64.of([memoryview(data)[a : a + 16]]), kind) for a in cuts]
    checker = Checker(checks, 0)
    assert checker.feed(memoryview(data)) is None
    assert sum(hashed) == len(data)
    data[bad * 16] ^= 4
    checker.rewind(0)
    hashed.clear()
    assert checker.feed(memoryview(data)) == checks[bad]
    assert sum(hashed) <= 2 * len(data)


@pytest.mark.parametrize("flips", [{}, {30: 1}])
def test_checksums_are_found_out(flips: dict[int, int]) -> None:
    checks = [
        Check(0, 100, crc(0, 100), CRC64),
        Check(100, 250, None, ZIP_CRC),
        Check(300, 600, None, CRC64),
    ]
    with FetchPool(Damaging(dict(flips)), 1) as pool:
        pool.submit(Fetch("path", 0, 600, [memoryview(bytearray(600))], None, checks))
        ended = pool.next()
    first = ZIP_CRC.update(memoryview(BLOB)[100:250], 0)
    assert ended.found == [(100, 250, first), (300, 600, crc(300, 600))]
    assert ended.damaged == len(flips)
