# ruff: noqa: S101 - a suite is made of assertions
"""The transports' contract as tests. Inherit it to test a transport of your own::

    from torch_s3dcp.testing.transport_suite import TransportSuite

    class TestMyTransport(TransportSuite):
        @pytest.fixture
        def transport(self): ...        # the transport

        @pytest.fixture
        def bucket(self): ...           # name of an empty bucket that it can reach

Needs ``pytest``. The oracle is what was stored, and the contract's text.
"""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

import pytest

from ..exceptions import (
    BucketNotFoundError,
    ObjectChangedError,
    ObjectNotFoundError,
    PreconditionFailedError,
    TruncatedObjectError,
)
from ..transports import ListPage, Transport

if TYPE_CHECKING:
    from typing_extensions import Buffer

MIB = 1024 * 1024
BLOB = random.Random(1).randbytes(5000)

ORDINARY_KEYS = ("plain", "run 1/step", "run+1/step", "a=b&c;d,e", "100%25 sure", "(x)[y]{z}'!*")
AWKWARD_KEYS = ("what?#now", "Grüße/日本語/🙂", "a//b", "a/", "~tilde", "/".join(["long" * 50] * 4))


class Uneven(io.RawIOBase):
    """A stream that gives less than it is asked for, and may fail.

    Args:
        size: Bytes until its end.
        step: The most that one read gives.
        error: Raised instead of the end.
    """

    def __init__(
        self, size: int, *, step: int = 300_001, error: BaseException | None = None
    ) -> None:
        self._data = memoryview(content(size))
        self._step = step
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._data), self._step)
        if not count and len(target) and self._error is not None:
            raise self._error
        target[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def content(size: int) -> bytes:
    """Bytes without a pattern; the same for the same size."""
    return random.Random(size).randbytes(size)


class StreamFailed(Exception):
    """An error of the stream's own, unknown to transport and client library."""


class TransportSuite:
    """What every transport must do.

    Attributes:
        conditions: Whether the server knows If-Match and If-None-Match on writes.
        keeps_metadata: Whether an object's metadata comes back.
        creates_buckets: Whether writing to a bucket that doesn't exist creates it.
        picklable: Whether the transport can be sent to another process.
        keys: Keys that must work. A server that can't serve some leaves them out.
        large: Size in bytes of an upload that is sent in several parts.
    """

    conditions: ClassVar[bool] = True
    keeps_metadata: ClassVar[bool] = True
    creates_buckets: ClassVar[bool] = False
    picklable: ClassVar[bool] = True
    keys: ClassVar[Sequence[str]] = (*ORDINARY_KEYS, *AWKWARD_KEYS)
    large: ClassVar[int] = 11 * MIB + 1

    def open_uploads(self, bucket: str) -> int:
        """How many multipart uploads are open in the bucket; override where one can tell."""
        return 0

    # ---- get

    @pytest.mark.parametrize(
        ("start", "end"),
        [(0, 1), (0, 5000), (17, 18), (17, 4999), (17, 5000), (4999, 5000), (2500, None)],
    )
    def test_get_serves_exactly_the_range(
        self, transport: Transport, bucket: str, start: int, end: int | None
    ) -> None:
        transport.put(bucket, "object", BLOB)
        with transport.get(bucket, "object", start, end) as body:
            assert (body.start, body.end) == (start, 5000 if end is None else end)
            assert body.info.size == 5000
            assert body.readall() == BLOB[start:end]
            assert body.read(1) == b""

    def test_get_serves_the_whole_object(self, transport: Transport, bucket: str) -> None:
        stored = transport.put(bucket, "object", BLOB)
        with transport.get(bucket, "object") as body:
            assert b"".join(body) == BLOB
            assert body.info.etag == stored.etag
            assert (body.info.bucket, body.info.key) == (bucket, "object")

    @pytest.mark.parametrize("at", [0, 1, 4999, 5000])
    def test_an_empty_range_is_empty(self, transport: Transport, bucket: str, at: int) -> None:
        stored = transport.put(bucket, "object", BLOB)
        with transport.get(bucket, "object", at, at) as body:
            assert body.read(10) == b""
            assert (body.info.size, body.info.etag) == (5000, stored.etag)

    def test_all_from_the_end_on_is_nothing(self, transport: Transport, bucket: str) -> None:
        transport.put(bucket, "object", BLOB)
        transport.put(bucket, "empty", b"")
        for key, size in (("object", 5000), ("empty", 0)):
            with transport.get(bucket, key, size) as body:
                assert (body.start, body.end, body.info.size) == (size, size, size)
                assert body.readall() == b""

    @pytest.mark.parametrize("size", [0, 1])
    def test_tiny_objects(self, transport: Transport, bucket: str, size: int) -> None:
        transport.put(bucket, "object", BLOB[:size])
        assert transport.head(bucket, "object").size == size
        with transport.get(bucket, "object") as body:
            assert (body.start, body.end, body.readall()) == (0, size, BLOB[:size])
        with transport.get(bucket, "object", 0, size) as body:
            assert body.readall() == BLOB[:size]

    @pytest.mark.parametrize(
        ("start", "end"), [(0, 5001), (4999, 5001), (5000, 5001), (6000, 7000), (5001, 5001)]
    )
    def test_beyond_the_end_is_an_error(
        self, transport: Transport, bucket: str, start: int, end: int
    ) -> None:
        transport.put(bucket, "object", BLOB)
        with pytest.raises(TruncatedObjectError) as caught:
            transport.get(bucket, "object", start, end)
        assert (caught.value.bucket, caught.value.key) == (bucket, "object")
        with pytest.raises(TruncatedObjectError):
            transport.get(bucket, "object", 5001)

    @pytest.mark.parametrize(("start", "end"), [(-1, 5), (-5, None), (5, 4), (0, -1)])
    def test_a_meaningless_range_is_refused(
        self, transport: Transport, bucket: str, start: int, end: int | None
    ) -> None:
        transport.put(bucket, "object", BLOB)
        with pytest.raises(ValueError, match="range"):
            transport.get(bucket, "object", start, end)

    def test_a_body_may_be_left_unread(self, transport: Transport, bucket: str) -> None:
        transport.put(bucket, "object", BLOB)
        for _ in range(40):
            with transport.get(bucket, "object") as body:
                assert body.read(3) == BLOB[:3]
        with pytest.raises(ValueError, match="closed"):
            body.read(1)

    def test_a_pin_holds_the_version(self, transport: Transport, bucket: str) -> None:
        pin = transport.put(bucket, "object", BLOB).etag
        with transport.get(bucket, "object", 5, 10, if_match=pin) as body:
            assert body.readall() == BLOB[5:10]
        transport.put(bucket, "object", BLOB[::-1])
        for start, end in ((5, 10), (0, None), (7, 7), (5000, None)):
            with pytest.raises(ObjectChangedError):
                transport.get(bucket, "object", start, end, if_match=pin)

    # ---- what is not there

    def test_an_absent_object_is_an_error(self, transport: Transport, bucket: str) -> None:
        for span in ((0, None), (3, 5), (3, 3)):
            with pytest.raises(ObjectNotFoundError):
                transport.get(bucket, "absent", *span)
        with pytest.raises(ObjectNotFoundError) as caught:
            transport.head(bucket, "absent")
        assert (caught.value.bucket, caught.value.key) == (bucket, "absent")
        with pytest.raises(ObjectNotFoundError):
            transport.copy(bucket, "absent", bucket, "other")

    def test_an_absent_bucket_is_an_error(self, transport: Transport, bucket: str) -> None:
        missing = bucket + "-missing"
        with pytest.raises(BucketNotFoundError):
            transport.get(missing, "object")
        with pytest.raises(BucketNotFoundError):
            list(transport.list(missing))
        # A HEAD has no body to say which of the two is missing.
        with pytest.raises(FileNotFoundError):
            transport.head(missing, "object")

    def test_nothing_is_stored_in_an_absent_bucket(self, transport: Transport, bucket: str) -> None:
        if self.creates_buckets:
            pytest.skip("declared to create buckets as they are written to")
        missing = bucket + "-missing"
        with pytest.raises(BucketNotFoundError):
            transport.put(missing, "object", b"data")
        with pytest.raises(BucketNotFoundError):
            transport.upload(missing, "object", io.BytesIO(b"data"), expected_size=4)  # type: ignore[arg-type]

    # ---- put

    def test_put_replaces_and_head_tells(self, transport: Transport, bucket: str) -> None:
        for data in (BLOB, b"", BLOB[:100]):
            stored = transport.put(bucket, "object", data)
            info = transport.head(bucket, "object")
            assert (info.bucket, info.key, info.size) == (bucket, "object", len(data))
            assert info.etag == stored.etag is not None

    def test_metadata_comes_back(self, transport: Transport, bucket: str) -> None:
        if not self.keeps_metadata:
            pytest.skip("declared to lose metadata")
        given = {"save-id": "0123-abcd", "step": "100"}
        transport.put(bucket, "object", BLOB, metadata=given)
        transport.copy(bucket, "object", bucket, "copy")
        for key in ("object", "copy"):
            assert dict(transport.head(bucket, key).metadata) == given
        with transport.get(bucket, "object", 1, 2) as body:
            assert dict(body.info.metadata) == given

    def test_put_if_absent(self, transport: Transport, bucket: str) -> None:
        if not self.conditions:
            pytest.skip("declared to know no conditions")
        transport.put(bucket, "object", b"first", if_none_match=True)
        with pytest.raises(PreconditionFailedError):
            transport.put(bucket, "object", b"second", if_none_match=True)
        assert _whole(transport, bucket, "object") == b"first"

    def test_put_if_unchanged(self, transport: Transport, bucket: str) -> None:
        if not self.conditions:
            pytest.skip("declared to know no conditions")
        first = transport.put(bucket, "object", b"first")
        second = transport.put(bucket, "object", b"second", if_match=first.etag)
        with pytest.raises(PreconditionFailedError):
            transport.put(bucket, "object", b"third", if_match=first.etag)
        assert _whole(transport, bucket, "object") == b"second"
        transport.put(bucket, "object", b"third", if_match=second.etag)
        with pytest.raises(PreconditionFailedError):
            transport.put(bucket, "absent", b"data", if_match=second.etag)
        with pytest.raises(ObjectNotFoundError):
            transport.head(bucket, "absent")

    # ---- upload

    @pytest.mark.parametrize("known", [True, False])
    @pytest.mark.parametrize("size", [0, 1, 5000, -1])
    def test_upload_stores_the_stream(
        self, transport: Transport, bucket: str, size: int, known: bool
    ) -> None:
        size = self.large if size < 0 else size
        transport.upload(bucket, "object", Uneven(size), expected_size=size if known else None)
        assert transport.head(bucket, "object").size == size
        assert _whole(transport, bucket, "object") == content(size)
        assert self.open_uploads(bucket) == 0

    def test_a_wrong_expectation_of_the_size_does_no_harm(
        self, transport: Transport, bucket: str
    ) -> None:
        for size, expected in ((self.large, 0), (3, 500 * MIB)):
            transport.upload(bucket, "object", Uneven(size), expected_size=expected)
            assert _whole(transport, bucket, "object") == content(size)

    @pytest.mark.parametrize("known", [True, False])
    @pytest.mark.parametrize("size", [0, 5000, -1])
    @pytest.mark.parametrize("error", [StreamFailed("mine"), KeyboardInterrupt()])
    def test_a_failing_stream_leaves_nothing_behind(
        self,
        transport: Transport,
        bucket: str,
        size: int,
        known: bool,
        error: BaseException,
    ) -> None:
        size = self.large if size < 0 else size
        stream = Uneven(size, error=error)
        with pytest.raises(type(error)) as caught:
            transport.upload(bucket, "object", stream, expected_size=size if known else None)
        assert caught.value is error
        with pytest.raises(ObjectNotFoundError):
            transport.head(bucket, "object")
        assert self.open_uploads(bucket) == 0

    def test_a_failing_stream_leaves_the_old_object(
        self, transport: Transport, bucket: str
    ) -> None:
        transport.put(bucket, "object", b"old")
        stream = Uneven(self.large, error=StreamFailed())
        with pytest.raises(StreamFailed):
            transport.upload(bucket, "object", stream, expected_size=self.large)
        assert _whole(transport, bucket, "object") == b"old"

    # ---- keys, copies, deletions

    def test_keys_are_taken_literally(self, transport: Transport, bucket: str) -> None:
        for number, key in enumerate(self.keys):
            data = BLOB[number : 100 + number]
            transport.put(bucket, key, data)
            transport.copy(bucket, key, bucket, f"copies/{number}")
            assert transport.head(bucket, key).key == key
            assert _whole(transport, bucket, key) == data
            assert _whole(transport, bucket, f"copies/{number}") == data
            transport.upload(bucket, key, Uneven(50), expected_size=50)
            assert _whole(transport, bucket, key) == content(50)
        listed = [key for key in _keys(transport.list(bucket)) if not key.startswith("copies/")]
        assert listed == sorted(self.keys, key=lambda key: key.encode())
        transport.delete(bucket, self.keys)
        assert all(key.startswith("copies/") for key in _keys(transport.list(bucket)))

    def test_copy(self, transport: Transport, bucket: str) -> None:
        transport.put(bucket, "large", content(self.large))
        transport.put(bucket, "empty", b"")
        for key in ("large", "empty"):
            transport.copy(bucket, key, bucket, "copy")
            assert _whole(transport, bucket, "copy") == _whole(transport, bucket, key)

    def test_delete(self, transport: Transport, bucket: str) -> None:
        names = [f"object-{number}" for number in range(7)]
        for name in names:
            transport.put(bucket, name, b"data")
        transport.delete(bucket, names[:1])
        transport.delete(bucket, names[:1])
        assert _keys(transport.list(bucket)) == names[1:]
        transport.delete(bucket, [])
        transport.delete(bucket, (name for name in [*names[:5], "absent"]))
        assert _keys(transport.list(bucket)) == names[5:]

    # ---- list

    def test_list_in_pages(self, transport: Transport, bucket: str) -> None:
        names = [f"run/{number:02}" for number in range(11)]
        for number, name in enumerate(reversed(names)):
            transport.put(bucket, name, BLOB[:number])
        transport.put(bucket, "other", b"")
        pages = list(transport.list(bucket, "run/", page_size=4))
        assert [len(page.object_info) for page in pages] == [4, 4, 3]
        assert _keys(pages) == names
        infos = [info for page in pages for info in page.object_info]
        assert [info.size for info in infos] == list(range(10, -1, -1))
        assert infos[0].bucket == bucket
        assert infos[0].etag is not None
        assert _keys(transport.list(bucket)) == ["other", *names]
        assert _keys(transport.list(bucket, "run/03")) == ["run/03"]
        assert _keys(transport.list(bucket, "absent/")) == []

    def test_list_with_a_delimiter(self, transport: Transport, bucket: str) -> None:
        for name in ("l/a/1", "l/a/2", "l/a/b/3", "l/a/c/d/4", "l/e"):
            transport.put(bucket, name, b"data")
        for prefix, keys, folders in (
            ("l/a/", ["l/a/1", "l/a/2"], ["l/a/b/", "l/a/c/"]),
            ("l/", ["l/e"], ["l/a/"]),
            ("l/a", [], ["l/a/"]),
        ):
            pages = list(transport.list(bucket, prefix, delimiter="/"))
            assert _keys(pages) == keys
            assert [name for page in pages for name in page.common_prefixes] == folders
            small = list(transport.list(bucket, prefix, delimiter="/", page_size=1))
            assert sorted(_keys(small)) == keys
            assert sorted(n for page in small for n in page.common_prefixes) == folders

    # ---- threads and processes

    def test_threads_may_share_it(self, transport: Transport, bucket: str) -> None:
        def work(number: int) -> bool:
            data, key = content(2000 + number), f"object-{number}"
            if number % 2:
                transport.put(bucket, key, data)
            else:
                transport.upload(bucket, key, Uneven(len(data)), expected_size=len(data))
            with transport.get(bucket, key, number, 2000) as body:
                return bool(body.readall() == data[number:2000])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(32)))
        assert len(_keys(transport.list(bucket))) == 32

    def test_it_can_be_sent_to_another_process(self, transport: Transport, bucket: str) -> None:
        if not self.picklable:
            pytest.skip("declared not to be picklable")
        transport.put(bucket, "object", BLOB)
        copy = pickle.loads(pickle.dumps(transport))  # noqa: S301 - made in this line
        assert _whole(copy, bucket, "object") == BLOB


def _whole(transport: Transport, bucket: str, key: str) -> bytes:
    with transport.get(bucket, key) as body:
        return body.readall()


def _keys(pages: object) -> list[str]:
    found: list[str] = []
    for page in pages:  # type: ignore[attr-defined]
        assert isinstance(page, ListPage)
        found += [info.key for info in page.object_info]
    return found
