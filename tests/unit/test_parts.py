"""Part sizes against the limits that S3 documents."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torch_s3dcp.exceptions import ConfigurationError
from torch_s3dcp.parts import part_size_for

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MIB, GIB, TIB = 2**20, 2**30, 2**40
PARTS = 10_000
LEAST, MOST = 5 * MIB, 5 * GIB
LARGEST_OBJECT = PARTS * MOST

PREFERRED = st.one_of(
    st.integers(LEAST, MOST), st.sampled_from([LEAST, 8 * MIB, 64 * MIB, MOST, LEAST + 1])
)


def parts_of(size: int, part_size: int) -> int:
    full, rest = divmod(size, part_size)
    return full + (rest > 0)


@given(st.integers(0, LARGEST_OBJECT // 2), PREFERRED)
@example(LARGEST_OBJECT // 2, LEAST)
@example(0, LEAST)
@example(5_000 * 8 * MIB, 8 * MIB)
@example(5_000 * 8 * MIB + 1, 8 * MIB)
def test_ten_thousand_parts_suffice_for_twice_the_expected_size(size: int, preferred: int) -> None:
    part_size = part_size_for(size, preferred)
    assert LEAST <= part_size <= MOST
    assert parts_of(2 * size, part_size) <= PARTS


@given(st.integers(LARGEST_OBJECT // 2, LARGEST_OBJECT), PREFERRED)
@example(LARGEST_OBJECT, LEAST)
@example(30 * TIB, 8 * MIB)
def test_the_largest_objects_that_s3_takes_fit(size: int, preferred: int) -> None:
    part_size = part_size_for(size, preferred)
    assert part_size <= MOST
    assert parts_of(size, part_size) <= PARTS


@given(st.integers(0, LARGEST_OBJECT), PREFERRED)
def test_the_preferred_size_is_kept_where_it_suffices(size: int, preferred: int) -> None:
    part_size = part_size_for(size, preferred)
    assert part_size >= preferred
    if parts_of(2 * size, preferred) <= PARTS:
        assert part_size == preferred


@given(st.integers(0, LARGEST_OBJECT // 2), PREFERRED)
def test_parts_grow_no_further_than_needed(size: int, preferred: int) -> None:
    part_size = part_size_for(size, preferred)
    if part_size > preferred:
        smaller = part_size - MIB
        assert smaller < preferred or parts_of(2 * size, smaller) > PARTS


@given(st.integers(0, LARGEST_OBJECT - 1), PREFERRED)
def test_a_larger_object_never_gets_smaller_parts(size: int, preferred: int) -> None:
    assert part_size_for(size, preferred) <= part_size_for(size + 1, preferred)


@given(st.integers(LARGEST_OBJECT + 1, LARGEST_OBJECT * 10), PREFERRED)
@example(LARGEST_OBJECT + 1, MOST)
def test_beyond_48_8_tib_the_message_says_what_to_do(size: int, preferred: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"{size} bytes is too large.*thread_count"):
        part_size_for(size, preferred)


@pytest.mark.parametrize(
    ("size", "preferred", "expected"),
    [
        (1, 8 * MIB, 8 * MIB),
        (40_000 * MIB, 8 * MIB, 8 * MIB),
        (40_000 * MIB + 1, 8 * MIB, 9 * MIB),
        (5 * TIB, 8 * MIB, 1049 * MIB),
        (LARGEST_OBJECT, 8 * MIB, MOST),
    ],
)
def test_examples(size: int, preferred: int, expected: int) -> None:
    assert part_size_for(size, preferred) == expected


@given(st.integers(0, 48 * 1024**4))
def test_without_a_preference_parts_are_of_a_size_that_suits(size: int) -> None:
    part_size = part_size_for(size)
    assert 8 * MIB <= part_size <= MOST
    assert parts_of(size, part_size) <= PARTS
    if 16 * 8 * MIB <= size <= 16 * 32 * MIB:
        assert parts_of(size, part_size) in (15, 16)
    if size <= 32 * MIB * PARTS // 2:
        assert part_size <= 32 * MIB
    assert part_size_for(size, part_size) == part_size
