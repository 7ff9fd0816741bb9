"""The number of requests in flight, and what is learned of the link."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.concurrency import ConcurrencyLimit
from torch_s3dcp.link import ASSUMED_BYTES_PER_SECOND, LinkEstimate, LoadConditions
from torch_s3dcp.readers.direct import even_part_size

MIB = 2**20


def simulate(
    limit: ConcurrencyLimit, rate_of: dict[str, float], rounds: int, now: float = 0.0
) -> list[int]:
    """Rounds of requests of 1 MiB on a link that carries so much per connection and in all."""
    seen = []
    limit.begin(now)
    for _ in range(rounds):
        flying = limit.limit
        seen.append(flying)
        rate = min(flying * rate_of["connection"], rate_of["all"])
        for _ in range(flying):
            now += MIB / rate
            limit.end(MIB, 0, now)
    return seen


def test_it_grows_until_the_link_is_full() -> None:
    limit = ConcurrencyLimit(16, 64)
    seen = simulate(limit, {"connection": 50 * MIB, "all": 2000 * MIB}, 12)
    assert seen[:4] == [16, 24, 36, 54]
    # 36 were the last to bring clearly more: 54 connections would carry 2700 MiB/s.
    assert set(seen[5:]) <= {36, 54}
    assert limit.highest <= 64


def test_it_stays_where_more_brings_nothing() -> None:
    limit = ConcurrencyLimit(16, 64)
    seen = simulate(limit, {"connection": 500 * MIB, "all": 1000 * MIB}, 12)
    assert seen == [16, 24, *[16] * 10]


def test_it_tries_again_after_a_while() -> None:
    limit = ConcurrencyLimit(4, 64)
    simulate(limit, {"connection": 50 * MIB, "all": 200 * MIB}, 12)
    assert limit.limit == 4
    assert max(simulate(limit, {"connection": 50 * MIB, "all": 9000 * MIB}, 30)) > 30


def test_it_halves_when_requests_fail_and_never_stops() -> None:
    limit = ConcurrencyLimit(16, 64)
    limit.begin(0.0)
    seen = []
    for number in range(40):
        limit.end(MIB, 1, number + 0.5)
        seen.append(limit.limit)
    # What was in flight with the one that failed is excused.
    assert seen == [8] * 16 + [4] * 8 + [2] * 4 + [1] * 12


def test_it_recovers_after_failures() -> None:
    limit = ConcurrencyLimit(16, 64)
    limit.begin(0.0)
    limit.end(MIB, 3, 1.0)
    assert limit.limit == 8
    assert max(simulate(limit, {"connection": 50 * MIB, "all": 9000 * MIB}, 40, 1.0)) == 64


@given(
    start=st.integers(1, 200),
    most=st.integers(1, 100),
    ends=st.lists(
        st.tuples(
            st.integers(0, 10**9),
            st.integers(0, 3) | st.just(0),
            st.floats(0, 10, allow_nan=False),
        ),
        max_size=200,
    ),
)
def test_it_keeps_between_one_and_most(
    start: int, most: int, ends: list[tuple[int, int, float]]
) -> None:
    limit = ConcurrencyLimit(start, most)
    now = 0.0
    limit.begin(now)
    for received, retries, passed in ends:
        now += passed
        limit.end(received, retries, now)
        assert 1 <= limit.limit <= limit.highest <= most


def test_the_link_is_the_quickest_answer_and_the_usual_body() -> None:
    link = LinkEstimate(0.1)
    known = link.conditions(5, 3)
    assert (known.bytes_per_second, known.seconds_per_request) == (ASSUMED_BYTES_PER_SECOND, 0.1)
    assert (known.bytes_wanted, known.concurrency) == (5, 3)
    link.learn(0.3, 8 * MIB, 0.1)
    link.learn(0.02, 10, 5.0)  # too short to tell of bandwidth
    link.learn(0.5, 8 * MIB, 0.1)
    known = link.conditions(0, 1)
    assert known.seconds_per_request == 0.02
    assert known.bytes_per_second == pytest.approx(80 * MIB)
    assert known.worthwhile_gap == pytest.approx(1.6 * MIB, abs=1)


@given(wanted=st.integers(0, 10**13), concurrency=st.integers(1, 500))
def test_parts_give_all_connections_the_same_to_do(wanted: int, concurrency: int) -> None:
    part = even_part_size(LoadConditions(0.02, 25e6, wanted, concurrency))
    assert 8 * MIB <= part <= 64 * MIB
    parts = -(-wanted // part)
    rounds = -(-parts // concurrency)
    if 8 * MIB < part < 64 * MIB:
        # No round is begun for a few left over parts.
        assert wanted > (rounds - 1) * concurrency * part
        assert part * rounds * concurrency - wanted <= rounds * concurrency * MIB


def test_one_round_of_objects_takes_one_request_each() -> None:
    size = 24 * MIB + 1500
    part = even_part_size(LoadConditions(0.1, 25e6, 16 * size, 16))
    assert size <= part < 26 * MIB
