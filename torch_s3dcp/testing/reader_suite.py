# ruff: noqa: S101 - a suite is made of assertions
"""The readers' contract as tests. Inherit it to test a reader of your own::

    from torch_s3dcp.testing.reader_suite import ReaderSuite

    class TestMyReader(ReaderSuite):
        constructor = MyReader          # or a registered name, or an object with settings

Needs ``pytest`` and ``hypothesis``. Oracles are slices of the object and ``io.BytesIO``.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..client import S3Client
from ..config import S3ClientConfig
from ..exceptions import EndpointError, ObjectChangedError
from ..ranges import ItemRange
from ..readers.contract import GetStream, ItemRangeAware, ReaderConstructor, S3Reader
from ..registry import resolve_reader
from ..segments import RangeView
from ..transports import MemoryTransport, Transport
from .strategies import blobs, object_with_items
from .wrappers import Fault, FaultTransport, RecordingTransport

BUCKET = "suite-bucket"
KEY = "some/object"
BLOB = bytes((7 * i + i // 256) % 256 for i in range(2000))
ITEMS = (ItemRange(10, 400), ItemRange(400, 401), ItemRange(450, 1200), ItemRange(1500, 2000))

# The tests are inherited: hypothesis sees one function called for several classes, and a
# third of the profile's examples for each of them is plenty.
_inherited = settings(
    max_examples=max(10, settings().max_examples // 3),
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)

_Access = tuple[int, int, int]
_accesses: st.SearchStrategy[list[_Access]] = st.lists(
    st.tuples(st.integers(-300, 5000), st.sampled_from([0, 1, 2]), st.integers(-1, 600)),
    max_size=12,
)


def stored(blob: bytes) -> MemoryTransport:
    """A transport with the object that is read."""
    transport = MemoryTransport(BUCKET)
    transport.put(BUCKET, KEY, blob)
    return transport


class ReaderSuite:
    """What every reader must do, whatever requests it makes for it.

    Attributes:
        constructor: The reader to test: a constructor or a registered name. One that is
            ``ItemRangeAware`` is told the ranges that a test reads.
        free_access: Whether it reads any byte at any time, to the end and beyond, backward
            and without a size. None: unless the constructor is ``ItemRangeAware``.
        picklable: Whether the constructor can be sent to another process.
    """

    constructor: ClassVar[Any]
    free_access: ClassVar[bool | None] = None
    picklable: ClassVar[bool] = True

    # ---- how a reader is made; override where yours needs more

    def bare_constructor(self) -> ReaderConstructor:
        """The constructor under test, before it knows ranges."""
        found = inspect.getattr_static(type(self), "constructor")
        if isinstance(found, staticmethod):
            found = found.__func__
        return resolve_reader(found, "")

    def constructor_for(self, ranges: Sequence[ItemRange]) -> ReaderConstructor:
        """The constructor under test, told the ranges if it wants to know them."""
        constructor = self.bare_constructor()
        if isinstance(constructor, ItemRangeAware):
            return constructor.with_item_ranges(tuple(sorted(ranges)))
        return constructor

    def open(
        self, source: bytes | Transport, ranges: Sequence[ItemRange] = ITEMS, key: str = KEY
    ) -> S3Reader:
        """A reader over an object, or over what a transport holds under ``key``."""
        transport = stored(source) if isinstance(source, bytes) else source
        client = S3Client(s3client_config=S3ClientConfig(max_attempts=1), transport=transport)
        return client.get_object(BUCKET, key, reader_constructor=self.constructor_for(ranges))

    def reads_freely(self) -> bool:
        if self.free_access is None:
            return not isinstance(self.bare_constructor(), ItemRangeAware)
        return self.free_access

    def _need_free_access(self) -> None:
        if not self.reads_freely():
            pytest.skip("serves planned ranges only")

    # ---- a file

    def test_names_its_object(self) -> None:
        with self.open(BLOB) as reader:
            assert (reader.bucket, reader.key) == (BUCKET, KEY)

    def test_is_a_seekable_file_for_reading(self) -> None:
        with self.open(BLOB) as reader:
            assert reader.readable()
            assert reader.seekable()
            assert not reader.writable()
            assert reader.tell() == 0
            assert not reader.closed

    def test_makes_no_request_before_it_must(self) -> None:
        transport = RecordingTransport(stored(BLOB))
        with self.open(transport) as reader:
            assert reader.read(0) == b""
            assert reader.seek(0) == 0
        assert transport.requests == ()

    def test_close_is_final_and_may_be_repeated(self) -> None:
        reader = self.open(BLOB)
        reader.seek(10)
        reader.read(5)
        reader.close()
        reader.close()
        assert reader.closed
        uses: list[Callable[[], object]] = [
            lambda: reader.read(1),
            lambda: reader.read(0),
            lambda: reader.readinto(bytearray(1)),
            lambda: reader.seek(10),
            reader.tell,
        ]
        for use in uses:
            with pytest.raises(ValueError, match="closed"):
                use()

    def test_close_closes_every_stream(self) -> None:
        transport = RecordingTransport(stored(BLOB))
        with self.open(transport) as reader:
            for item in ITEMS:
                reader.seek(item.start)
                reader.read(1)
            assert transport.of("get")
        assert transport.open_bodies == 0, "a connection is left open"

    def test_context_manager_closes(self) -> None:
        with self.open(BLOB) as reader:
            pass
        assert reader.closed
        failing = self.open(BLOB)
        with pytest.raises(KeyError), failing:
            raise KeyError
        assert failing.closed

    def test_wrong_seeks_move_nothing(self) -> None:
        with self.open(BLOB) as reader:
            reader.seek(20)
            for offset, whence in ((-1, io.SEEK_SET), (-21, io.SEEK_CUR), (0, 7), (0, -1)):
                with pytest.raises(ValueError, match=r"."):
                    reader.seek(offset, whence)
                assert reader.tell() == 20
            assert reader.read(4) == BLOB[20:24]

    def test_wrong_types_are_refused(self) -> None:
        with self.open(BLOB) as reader:
            reader.seek(20)
            with pytest.raises(TypeError):
                reader.seek(1.5)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                reader.read("3")  # type: ignore[arg-type]
            assert reader.tell() == 20

    def test_readinto_refuses_memory_that_it_must_not_change(self) -> None:
        with self.open(BLOB) as reader:
            reader.seek(20)
            with pytest.raises((TypeError, ValueError, BufferError)):
                reader.readinto(bytes(5))
            assert reader.tell() == 20

    def test_empty_reads_move_nothing(self) -> None:
        with self.open(BLOB) as reader:
            reader.seek(20)
            assert reader.read(0) == b""
            empty = (bytearray(), np.empty((0, 3), np.float32))
            assert [reader.readinto(cast("Any", target)) for target in empty] == [0, 0]
            assert reader.tell() == 20

    def test_readinto_takes_any_contiguous_memory(self) -> None:
        target = np.zeros((3, 5), np.int32)
        with self.open(BLOB) as reader:
            reader.seek(20)
            assert reader.readinto(cast("Any", target)) == 60
        assert target.tobytes() == BLOB[20:80]

    # ---- planned ranges, ascending, as a load reads them

    @_inherited
    @given(object_with_items(), st.booleans())
    def test_reads_items(self, given_object: tuple[bytes, Sequence[ItemRange]], into: bool) -> None:
        blob, ranges = given_object
        with self.open(blob, ranges) as reader:
            for item in sorted(ranges):
                assert reader.seek(item.start) == item.start
                assert _take(reader, len(item), into) == blob[item.start : item.end]
                assert reader.tell() == item.end

    @_inherited
    @given(object_with_items(max_size=300, max_items=4), st.integers(1, 40))
    def test_reads_items_in_pieces(
        self, given_object: tuple[bytes, Sequence[ItemRange]], piece: int
    ) -> None:
        blob, ranges = given_object
        with self.open(blob, ranges) as reader:
            for item in sorted(ranges):
                reader.seek(item.start)
                for start in range(item.start, item.end, piece):
                    end = min(start + piece, item.end)
                    assert reader.tell() == start
                    assert _take(reader, end - start, into=bool(start % 2)) == blob[start:end]

    @_inherited
    @given(object_with_items(max_items=4), _accesses)
    def test_items_are_files_of_their_own(
        self, given_object: tuple[bytes, Sequence[ItemRange]], accesses: list[_Access]
    ) -> None:
        """torch.load reads an item's end first, then goes back and forth in it."""
        blob, ranges = given_object
        with self.open(blob, ranges) as reader:
            for item in sorted(ranges):
                view = RangeView(reader, item.start, item.end)
                oracle = io.BytesIO(blob[item.start : item.end])
                tail = (-min(22, len(item)), io.SEEK_END, 22)
                for offset, whence, size in (tail, *accesses, (0, io.SEEK_SET, -1)):
                    assert _access(view, offset, whence, size) == _access(
                        oracle, offset, whence, size
                    )

    def test_items_may_be_left_out(self) -> None:
        with self.open(BLOB) as reader:
            for item in (ITEMS[1], ITEMS[3]):
                reader.seek(item.start)
                assert reader.read(len(item)) == BLOB[item.start : item.end]

    def test_readers_of_one_constructor_do_not_disturb_one_another(self) -> None:
        transport = stored(BLOB)
        transport.put(BUCKET, "other", BLOB[::-1])
        other = tuple(ItemRange(2000 - i.end, 2000 - i.start) for i in reversed(ITEMS))
        first, second = self.open(transport), self.open(transport, other, key="other")
        third = self.open(transport, key="other")
        with first, second, third:
            for mine, theirs in zip(ITEMS, other, strict=True):
                first.seek(mine.start)
                second.seek(theirs.start)
                third.seek(mine.start)
                assert first.read(len(mine)) == BLOB[mine.start : mine.end]
                assert second.read(len(theirs)) == BLOB[::-1][theirs.start : theirs.end]
                assert third.read(len(mine)) == BLOB[::-1][mine.start : mine.end]

    def test_the_constructor_can_be_sent_to_another_process(self) -> None:
        if not self.picklable:
            pytest.skip("declared not to be picklable")
        for constructor in (self.bare_constructor(), self.constructor_for(ITEMS)):
            copy = pickle.loads(pickle.dumps(constructor))  # noqa: S301 - made one line above
            assert callable(copy)
        client = S3Client(transport=stored(BLOB))
        with client.get_object(BUCKET, KEY, reader_constructor=copy) as reader:
            reader.seek(10)
            assert reader.read(390) == BLOB[10:400]

    # ---- what may go wrong

    @pytest.mark.parametrize("after", [0, 1, 13, 300])
    def test_a_body_that_ends_early_is_an_error(self, after: int) -> None:
        fault = Fault("get", body="truncate", after=after, times=None)
        transport = FaultTransport(stored(BLOB), [fault])
        with self.open(transport, [ItemRange(0, 600)]) as reader, pytest.raises(EOFError):
            reader.read(600)
        assert transport.struck

    @pytest.mark.parametrize("after", [0, 13, 300])
    def test_a_stream_that_ends_early_never_gives_bytes_that_did_not_come(self, after: int) -> None:
        info = stored(BLOB).head(BUCKET, KEY)

        def get_stream(start: int | None = None, end: int | None = None) -> Any:
            return _ShortStream(BLOB[start or 0 : end][:after], info)

        constructor = self.constructor_for([ItemRange(0, 600)])
        reader = constructor(BUCKET, KEY, lambda: info, cast("GetStream", get_stream))
        target, count = bytearray(600), 0
        with reader, contextlib.suppress(EOFError):
            count = reader.readinto(target)
        assert count <= after
        assert target[:count] == BLOB[:count]

    @pytest.mark.parametrize("after", [0, 1, 13, 300])
    def test_a_broken_stream_comes_out_and_leaves_no_wrong_bytes(self, after: int) -> None:
        transport = FaultTransport(stored(BLOB), [Fault("get", body="cut", after=after)])
        with self.open(transport, [ItemRange(0, 600)]) as reader:
            with pytest.raises(EndpointError):
                reader.read(600)
            assert reader.tell() == 0
            # The fault is over: trying again must not take up a stream in the middle.
            assert reader.read(600) == BLOB[:600]

    def test_a_failed_request_comes_out(self) -> None:
        error = EndpointError("no way")
        transport = FaultTransport(stored(BLOB), [Fault("get", error=error)])
        with self.open(transport) as reader:
            with pytest.raises(EndpointError) as caught:
                _read_at(reader, ITEMS[0])
            assert caught.value is error

    def test_an_absent_object_is_an_error(self) -> None:
        with self.open(MemoryTransport(BUCKET)) as reader, pytest.raises(FileNotFoundError):
            _read_at(reader, ITEMS[0])

    def test_never_mixes_two_versions_of_an_object(self) -> None:
        transport = stored(BLOB)
        newer = bytes(255 - byte for byte in BLOB)
        with self.open(transport) as reader:
            assert _read_at(reader, ITEMS[0]) == BLOB[10:400]
            transport.put(BUCKET, KEY, newer)
            try:
                assert _read_at(reader, ITEMS[3]) == BLOB[1500:2000]
            except ObjectChangedError:
                return

    # ---- any byte at any time

    @_inherited
    @given(blobs(), _accesses)
    def test_free_access_is_that_of_a_file(self, blob: bytes, accesses: list[_Access]) -> None:
        self._need_free_access()
        with self.open(blob) as reader:
            oracle = io.BytesIO(blob)
            for offset, whence, size in accesses:
                assert _access(reader, offset, whence, size) == _access(
                    oracle, offset, whence, size, end=len(blob)
                )

    def test_reads_the_rest(self) -> None:
        self._need_free_access()
        with self.open(BLOB) as reader:
            reader.seek(1990)
            assert reader.read() == BLOB[1990:]
            assert reader.read(None) == b""
            reader.seek(-5, io.SEEK_END)
            assert reader.read(2**40) == BLOB[-5:]
            assert reader.readinto(bytearray(5)) == 0

    def test_reads_an_empty_object(self) -> None:
        self._need_free_access()
        with self.open(b"") as reader:
            assert reader.read() == b""
            assert reader.read(5) == b""
            assert reader.seek(0, io.SEEK_END) == 0

    def test_planned_access_refuses_all_else(self) -> None:
        if self.reads_freely():
            pytest.skip("serves any range")
        refused = [(0, 5), (395, 10), (405, 10), (449, 2), (1990, 2**40), (5000, 1)]
        with self.open(BLOB) as reader:
            for position, size in refused:
                reader.seek(position)
                with pytest.raises(ValueError, match=r"."):
                    reader.read(size)
                assert reader.tell() == position
            with pytest.raises(ValueError, match=r"."):
                reader.read()
            with pytest.raises(ValueError, match=r"."):
                reader.seek(0, io.SEEK_END)
            assert _read_at(reader, ITEMS[0]) == BLOB[10:400]


class _ShortStream(io.BytesIO):
    """A stream that ends early and doesn't know it."""

    def __init__(self, data: bytes, info: object) -> None:
        super().__init__(data)
        self.info = info


def _take(reader: S3Reader, size: int, into: bool) -> bytes:
    if not into:
        return reader.read(size)
    target = bytearray(b"\xee" * size)
    assert reader.readinto(target) == size
    return bytes(target)


def _read_at(reader: S3Reader, item: ItemRange) -> bytes:
    reader.seek(item.start)
    return reader.read(len(item))


def _access(
    file: io.BufferedIOBase, offset: int, whence: int, size: int, end: int | None = None
) -> tuple[object, bytes, int]:
    """Seek and read; ``end``: where an oracle must stop that lets one seek beyond it."""
    try:
        # BytesIO stops at 0 for these two, a file raises.
        if whence and isinstance(file, io.BytesIO):
            origin = file.tell() if whence == io.SEEK_CUR else len(file.getbuffer())
            offset, whence = origin + offset, io.SEEK_SET
        moved: object = file.seek(offset, whence)
        if end is not None:
            moved = file.seek(min(end, file.tell()))
    except ValueError:
        moved = ValueError
    data = file.read(size)
    return moved, data, file.tell()
