"""One version of an object: what answers say of it must agree, but for those cut short."""

from __future__ import annotations

import io
from typing import Any

import pytest

from torch_s3dcp.exceptions import ObjectChangedError, WrongRangeError
from torch_s3dcp.pinned import PinnedObject
from torch_s3dcp.transports import ObjectBody, ObjectInfo
from torch_s3dcp.transports.retries import Limits

OLD, LONGER, SHORTER = b"a" * 8, b"b" * 12, b"c" * 6


class Answers:
    """A transport that gives one answer after the other, the last for ever; all with one ETag."""

    def __init__(self, *contents: bytes, etag: str | None = '"x"') -> None:
        self.contents = list(contents)
        self.etag = etag

    def get(
        self, bucket: str, key: str, start: int, end: int | None, *, if_match: Any = None
    ) -> ObjectBody:
        content = self.contents.pop(0) if len(self.contents) > 1 else self.contents[0]
        stop = len(content) if end is None else end
        info = ObjectInfo(bucket, key, len(content), self.etag)
        return ObjectBody(io.BytesIO(content[start:stop]), info, start, stop)  # type: ignore[arg-type]


def pin(answers: Answers) -> PinnedObject:
    return PinnedObject(answers, "b", "k", None, Limits(3, 60, 0.001))  # type: ignore[arg-type]


@pytest.mark.parametrize("etag", ['"x"', None])
@pytest.mark.parametrize("other", [LONGER, SHORTER])
def test_another_size_is_another_version(other: bytes, etag: str | None) -> None:
    pinned = pin(Answers(OLD, other, etag=etag))
    assert pinned.stream(0, 3).read(3) == b"aaa"
    with pytest.raises(ObjectChangedError):
        pinned.stream(3, 6)


@pytest.mark.parametrize("short", [b"a" * 5, b"a" * 11])
def test_what_was_said_without_a_range_may_have_been_cut_short(short: bytes) -> None:
    pinned = pin(Answers(short, OLD))
    pinned.stream().close()
    assert pinned.stream(0, 8).read(8) == OLD
    assert pinned.info().size == len(OLD)
    assert pinned.stream(2, 5).read(3) == b"aaa"


def test_an_answer_that_is_cut_short_is_asked_for_again() -> None:
    pinned = pin(Answers(OLD, b"a" * 5, OLD))
    assert pinned.stream(0, 3).read(3) == b"aaa"
    stream = pinned.stream()
    assert stream.read(8) == OLD
    assert stream.retries == 1


def test_answers_that_are_always_cut_short_end() -> None:
    pinned = pin(Answers(OLD, b"a" * 5))
    assert pinned.stream(0, 3).read(3) == b"aaa"
    with pytest.raises(WrongRangeError):
        pinned.stream()
