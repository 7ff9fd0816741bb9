"""Pickles are looked through before they are loaded. pickletools and pickle are the oracles."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.pickles import check_sizes, has_odd_keys

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=30,
)


class Thing:
    def __init__(self, value: Any) -> None:
        self.value = value


@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_every_honest_pickle_passes(value: Any, protocol: int) -> None:
    check_sizes(pickle.dumps(value, protocol))
    check_sizes(pickle.dumps([Thing(value), Thing, len], protocol))


def test_many_objects_pass() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        check_sizes(pickle.dumps([str(n) for n in range(3000)], protocol))


@given(st.binary(max_size=200))
def test_what_passes_asks_for_no_more_than_its_length(noise: bytes) -> None:
    try:
        check_sizes(noise)
    except ValueError:
        return
    for opcode, argument, _ in pickletools.genops(io.BytesIO(noise)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            assert argument <= max(255, len(noise))


@pytest.mark.parametrize(
    "bad",
    [
        b"]r\xff\xff\xff\x7f.",
        b"]p1999999999\n.",
        b"\x96\xff\xff\xff\xff\xff\x00\x00\x00.",
        b"\x8e\xff\xff\xff\xff\x00\x00\x00\x00.",
        b"\x8b\xff\xff\xff\xff.",
        b"]",
        b"cos\nsystem",
        b"\xff.",
        b"",
    ],
)
def test_oversized_and_broken_pickles_are_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"size|end|opcode"):
        check_sizes(bad)


def test_a_key_that_a_few_bytes_make_endless_is_refused() -> None:
    data = b"\x80\x02}" + b")" + b"2\x86" * 45 + b"Ns."
    assert [op.name for op, _, _ in pickletools.genops(data)].count("DUP") == 45
    with pytest.raises(ValueError, match="opcode 0x32"):
        check_sizes(data)


@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_odd_keys_are_seen(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    check_sizes(data)
    found = {op.name for op, _, _ in pickletools.genops(data)}
    tuples = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "INT", "LONG", "LONG4"}
    large = any(
        op.name == "LONG1" and argument.bit_length() > 63
        for op, argument, _ in pickletools.genops(data)
    )
    assert has_odd_keys(data) == (bool(found & tuples) or large)


@pytest.mark.parametrize("number", [2**64, -(2**70), 2**3000])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_large_numbers_are_refused_where_none_are_expected(number: int, protocol: int) -> None:
    data = pickle.dumps([number], protocol)
    check_sizes(data)
    with pytest.raises(ValueError, match="8 bytes"):
        check_sizes(data, large_numbers=False)
    check_sizes(pickle.dumps([2**62, -(2**62), 0, 1], 4), large_numbers=False)
