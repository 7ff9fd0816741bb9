"""Pickles are looked through before they are loaded. pickletools and pickle are the oracles."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.pickles import check_sizes, look_through

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


TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}


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


@given(VALUES | st.frozensets(st.integers()), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_tuples_are_noted(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    names = {opcode.name for opcode, _, _ in pickletools.genops(data)}
    look = look_through(data + b"t")
    assert (look.end, look.makes_tuples) == (len(data), bool(names & TUPLES))


@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_large_numbers_are_noted(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found = list(pickletools.genops(data))
    large = any(op.name == "LONG1" and number.bit_length() > 63 for op, number, _ in found)
    large = large or bool({op.name for op, _, _ in found} & {"INT", "LONG", "LONG4"})
    look = look_through(data)
    assert look.large_numbers == large
    assert look.odd_keys == (look.makes_tuples or large)


@pytest.mark.parametrize("number", [2**64, -(2**70), 2**3000])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_one_large_number_is_enough(number: int, protocol: int) -> None:
    assert look_through(pickle.dumps([(1, 2), 1, number], protocol)).large_numbers
    assert not look_through(pickle.dumps([2**62, -(2**62), 0, 1], 4)).large_numbers


@pytest.mark.parametrize("value", [(1, 2), [(1,)], [None] * 500 + [(1, 2, 3)], frozenset({1})])
def test_one_tuple_is_enough(value: Any) -> None:
    assert look_through(pickle.dumps(value, 4)).makes_tuples


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
