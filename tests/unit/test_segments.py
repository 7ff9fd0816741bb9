"""Blocks as files, against io.BytesIO over the joined bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from torch_s3dcp.exceptions import TruncatedObjectError
from torch_s3dcp.segments import RangeView, SegmentSink, SegmentStream, address_of

BLOCKS = st.lists(st.binary(max_size=20), max_size=12)
# How much to read next, and whether through readinto.
READS = st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=20)


def stream_of(blocks: list[bytes]) -> SegmentStream:
    return SegmentStream(memoryview(block) for block in blocks)


def read_some(file: io.RawIOBase | io.BytesIO, size: int, into: bool) -> bytes:
    if not into:
        return file.read(size) or b""
    target = bytearray(b"\xee" * size)
    count = file.readinto(target) or 0
    assert target[count:] == b"\xee" * (size - count), "wrote beyond what it counted"
    return bytes(target[:count])


@given(BLOCKS, READS)
def test_a_stream_reads_like_the_joined_blocks(
    blocks: list[bytes], reads: list[tuple[int, bool]]
) -> None:
    stream, oracle = stream_of(blocks), io.BytesIO(b"".join(blocks))
    for size, into in reads:
        assert read_some(stream, size, into) == oracle.read(size)
    assert stream.read() == oracle.read()
    assert stream.read(5) == b""


@given(BLOCKS, st.sampled_from([None, -1]))
def test_a_stream_reads_all(blocks: list[bytes], size: int | None) -> None:
    assert stream_of(blocks).read(size) == b"".join(blocks)
    assert stream_of(blocks).readall() == b"".join(blocks)


def test_blocks_are_made_when_they_are_needed() -> None:
    made: list[int] = []

    def produce() -> Iterator[memoryview]:
        for number in range(5):
            made.append(number)
            yield memoryview(bytes([number]) * 4)

    stream = SegmentStream(produce())
    assert made == []
    assert stream.read(4) == b"\0" * 4
    assert made == [0]
    assert stream.read(5) == b"\1" * 4 + b"\2"
    assert made == [0, 1, 2]


def test_what_the_producer_raises_comes_out_of_reading() -> None:
    def produce() -> Iterator[memoryview]:
        yield memoryview(b"good")
        raise ZeroDivisionError("planned")

    for read in (lambda s: s.read(), lambda s: s.read(10), lambda s: s.readinto(bytearray(10))):
        with pytest.raises(ZeroDivisionError, match="planned"):
            read(SegmentStream(produce()))
    stream = SegmentStream(produce())
    assert stream.read(4) == b"good"
    with pytest.raises(ZeroDivisionError, match="planned"):
        stream.read(1)


def test_a_stream_is_a_readable_file_and_no_more() -> None:
    stream = stream_of([b"x"])
    assert stream.readable()
    assert not stream.writable()
    assert not stream.seekable()
    with pytest.raises(OSError, match="seek"):
        stream.seek(0)


def test_a_stream_fills_memory_of_any_type() -> None:
    target = memoryview(bytearray(8)).cast("I")
    assert stream_of([b"\1\0\0\0", b"\2\0\0\0"]).readinto(target) == 8
    assert target.tolist() == [1, 2]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 12)), max_size=12))
def test_a_sink_keeps_what_is_written(writes: list[tuple[bool, int, int]]) -> None:
    stable = bytearray(range(32))
    oracle, sink = io.BytesIO(), SegmentSink(stable)
    for inside, start, length in writes:
        block = (memoryview(stable) if inside else memoryview(bytes(stable)))[start:][:length]
        assert sink.write(block) == oracle.write(block)
        assert sink.tell() == oracle.tell()
    assert b"".join(sink.segments) == oracle.getvalue()
    assert all(len(segment) for segment in sink.segments)


def test_stable_memory_is_kept_by_reference() -> None:
    stable = bytearray(b"0123456789")
    sink = SegmentSink(stable)
    sink.write(memoryview(stable)[2:6])
    sink.write(memoryview(stable))
    stable[3:5] = b"XY"
    assert [bytes(segment) for segment in sink.segments] == [b"2XY5", b"012XY56789"]
    start, _ = address_of(stable)
    assert [address_of(s) for s in sink.segments] == [(start + 2, 4), (start, 10)]


def test_other_blocks_are_copied() -> None:
    stable, other = bytearray(b"stable"), bytearray(b"other")
    sink, without = SegmentSink(stable), SegmentSink()
    for file in (sink, without):
        file.write(other)
    without.write(stable)
    other[:], stable[:] = b"XXXXX", b"YYYYYY"
    assert [bytes(segment) for segment in sink.segments] == [b"other"]
    assert [bytes(segment) for segment in without.segments] == [b"other", b"stable"]


@pytest.mark.parametrize(("start", "end"), [(0, 6), (2, 12), (0, 12), (8, 10), (1, 4)])
def test_only_what_lies_wholly_inside_is_stable(start: int, end: int) -> None:
    whole = bytearray(12)
    sink = SegmentSink(memoryview(whole)[4:8])
    sink.write(memoryview(whole)[start:end])
    whole[:] = b"\1" * 12
    assert bytes(sink.segments[0]) == bytes(end - start), "a reference to unstable memory"


@pytest.mark.parametrize("stable", [b"", b"abc", None])
def test_writing_nothing_keeps_nothing(stable: bytes | None) -> None:
    sink = SegmentSink(stable)
    assert sink.write(b"") == 0
    assert sink.write(memoryview(b"abc")[3:]) == 0
    assert sink.segments == []
    assert sink.tell() == 0
    assert sink.writable()


def test_a_sink_counts_bytes_not_elements() -> None:
    numbers = memoryview(bytearray(16)).cast("Q")
    sink = SegmentSink(numbers)
    assert sink.write(numbers) == 16
    assert sink.tell() == 16
    numbers[1] = 7
    assert b"".join(sink.segments) == bytes(8) + (7).to_bytes(8, "little")


class Pieces(io.BytesIO):
    """A raw file that answers in pieces of at most three bytes, as a network may."""

    def readinto(self, buffer, /):  # type: ignore[no-untyped-def]
        return super().readinto(memoryview(buffer).cast("B")[:3])


class ViewLikeBytesIO(RuleBasedStateMachine):
    """A view over part of a file, and BytesIO over the same part, asked the same things."""

    @initialize(blob=st.binary(max_size=60), pieces=st.booleans(), data=st.data())
    def begin(self, blob: bytes, pieces: bool, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(blob)))
        end = data.draw(st.integers(start, len(blob)))
        self.base = Pieces(blob) if pieces else io.BytesIO(blob)
        self.view = RangeView(self.base, start, end)
        self.oracle = io.BytesIO(blob[start:end])

    @rule(size=st.one_of(st.none(), st.integers(-3, 70)))
    def read(self, size: int | None) -> None:
        assert self.view.read(size) == self.oracle.read(size)

    @rule(size=st.integers(-1, 70))
    def read1(self, size: int) -> None:
        assert self.view.read1(size) == self.oracle.read1(size)

    @rule(size=st.integers(0, 70))
    def readinto(self, size: int) -> None:
        assert read_some(self.view, size, into=True) == read_some(self.oracle, size, into=True)

    @rule()
    def readline(self) -> None:
        assert self.view.readline() == self.oracle.readline()

    @rule(offset=st.integers(0, 90))
    def seek_from_start(self, offset: int) -> None:
        assert self.view.seek(offset) == self.oracle.seek(offset)

    @rule(whence=st.sampled_from([io.SEEK_CUR, io.SEEK_END]), offset=st.integers(-70, 70))
    def seek_from_elsewhere(self, whence: int, offset: int) -> None:
        origin = self.oracle.tell() if whence == io.SEEK_CUR else len(self.oracle.getvalue())
        if origin + offset < 0:
            # BytesIO goes to 0 instead.
            with pytest.raises(ValueError, match="before the start"):
                self.view.seek(offset, whence)
        else:
            assert self.view.seek(offset, whence) == self.oracle.seek(offset, whence)

    @rule(offset=st.integers(0, 70))
    def somebody_else_moves_the_reader(self, offset: int) -> None:
        self.base.seek(offset)

    @invariant()
    def they_stand_at_the_same_place(self) -> None:
        if hasattr(self, "view"):
            assert self.view.tell() == self.oracle.tell()


TestViewLikeBytesIO = ViewLikeBytesIO.TestCase


@given(st.binary(min_size=1, max_size=40), READS)
def test_views_of_one_reader_do_not_disturb_one_another(
    blob: bytes, reads: list[tuple[int, bool]]
) -> None:
    base, middle = io.BytesIO(blob), len(blob) // 2
    views = [RangeView(base, 0, middle), RangeView(base, middle, len(blob))]
    oracles = [io.BytesIO(blob[:middle]), io.BytesIO(blob[middle:])]
    for size, second in reads:
        assert views[second].read(size) == oracles[second].read(size)


def test_closing_a_view_leaves_the_reader_open() -> None:
    base = io.BytesIO(b"abcdef")
    with RangeView(base, 1, 3) as view:
        assert view.read() == b"bc"
        assert view.readable()
        assert view.seekable()
        assert not view.writable()
    assert not base.closed
    assert RangeView(base, 3, 6).read() == b"def"


@pytest.mark.parametrize("whence", [3, -1, 99])
def test_an_unknown_origin_is_refused(whence: int) -> None:
    view = RangeView(io.BytesIO(b"abc"), 0, 3)
    with pytest.raises(ValueError, match=f"whence.*{whence}"):
        view.seek(0, whence)
    with pytest.raises(ValueError, match="before the start"):
        view.seek(-1)
    assert view.tell() == 0


@pytest.mark.parametrize("base", [io.BytesIO, Pieces])
def test_a_reader_that_ends_early_is_an_error_and_not_a_short_item(
    base: type[io.BytesIO],
) -> None:
    view = RangeView(base(b"0123456789"), 4, 12)
    assert view.read(6) == b"456789"
    with pytest.raises(TruncatedObjectError, match=r"bytes \[4, 12\)"):
        view.read(1)
    view.seek(0)
    for read in (view.read, lambda: view.readinto(bytearray(8))):
        with pytest.raises(TruncatedObjectError):
            read()
        assert view.tell() == 0
