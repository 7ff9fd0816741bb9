"""What a reader is given and what it must offer. No I/O here.

A reader is a read-only file over one object. It is built from four things and asks for
bytes only through the two callables, so it runs on any transport.
"""

from __future__ import annotations

import io
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..exceptions import ConfigurationError, TruncatedObjectError
from ..ranges import ItemRange

if TYPE_CHECKING:
    from typing_extensions import Buffer


class SizedObject(Protocol):
    """The part of an object's description that readers use."""

    @property
    def size(self) -> int:
        """Bytes of the whole object."""
        ...


class ObjectStream(Protocol):
    """A byte range, arriving. ``readinto`` returns 0 only after its last byte."""

    @property
    def info(self) -> SizedObject:
        """Describes the whole object, known from the answer's header."""
        ...

    def readinto(self, buffer: memoryview, /) -> int | None: ...

    def close(self) -> None: ...

    def __iter__(self) -> Iterator[bytes]: ...


class GetStream(Protocol):
    """Requests ``[start, end)`` of the object: one GET for each call."""

    def __call__(self, start: int | None = None, end: int | None = None) -> ObjectStream: ...


@runtime_checkable
class ReaderConstructor(Protocol):
    """Builds a reader for one object. Any callable with these parameters will do.

    ``get_object_info`` costs a HEAD request; a reader that can do without does not call it.
    """

    def __call__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStream,
    ) -> S3Reader: ...


@runtime_checkable
class ItemRangeAware(Protocol):
    """A reader constructor that wants to know the item ranges before it reads.

    The storage reader calls ``with_item_ranges`` once for each object of the final plan and
    builds the reader from what comes back. The constructor itself is not changed.
    """

    def with_item_ranges(self, item_ranges: Sequence[ItemRange]) -> ReaderConstructor:
        """A constructor for one object of which just these ranges will be read, ascending."""
        ...


class S3Reader(io.BufferedIOBase):
    """A read-only, seekable file over one object.

    A strategy implements :meth:`fill` and :meth:`measure`, and overrides what else it can
    do better. Positions, closing and argument checks are the same for all and live here.

    Args:
        bucket: Name of the bucket.
        key: Key of the object.
        get_object_info: Asks for size and ETag (a HEAD request).
        get_stream: Asks for a byte range (a GET request).

    Raises:
        ConfigurationError: Bucket or key is empty.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStream,
    ) -> None:
        if not bucket or not key:
            raise ConfigurationError("a reader needs a bucket and a key")
        self._bucket = bucket
        self._key = key
        self._get_object_info = get_object_info
        self._get_stream = get_stream
        self._position = 0

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self._bucket

    @property
    def key(self) -> str:
        """Key of the object."""
        return self._key

    @abstractmethod
    def fill(self, position: int, target: memoryview) -> int:
        """Put the bytes from ``position`` on into ``target``; return how many.

        ``target`` is not empty. All of it is filled, unless the object ends before.
        """

    @abstractmethod
    def measure(self) -> int:
        """Size of the object in bytes."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move; beyond the end stays at the end.

        Raises:
            ValueError: Before the start, an unknown ``whence``, or the reader is closed.
        """
        self._check_open()
        offset = operator.index(offset)
        if whence == io.SEEK_SET:
            position = offset
        elif whence == io.SEEK_CUR:
            position = self._position + offset
        elif whence == io.SEEK_END:
            position = self.measure() + offset
        else:
            raise ValueError(f"whence must be SEEK_SET, SEEK_CUR or SEEK_END, got {whence!r}")
        if position < 0:
            raise ValueError(f"cannot seek to {position}, before the start of the object")
        self._position = self.clamp(position)
        return self._position

    def clamp(self, position: int) -> int:
        """Where a seek to ``position`` really ends up."""
        return min(position, self.measure()) if position else 0

    def available(self, size: int | None) -> int:
        """How many bytes a read of ``size`` bytes (None: of the rest) can bring.

        Asked before memory is taken for them: ``read(2**40)`` is legal on a small object.
        """
        rest = max(0, self.measure() - self._position)
        return rest if size is None else min(size, rest)

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill ``buffer`` from the position on; return how many bytes came, 0 at the end."""
        self._check_open()
        target = memoryview(buffer)
        if target.readonly:
            raise TypeError("readinto() needs a writable buffer")
        if not target.nbytes:
            return 0
        count = self.fill(self._position, target.cast("B"))
        self._position += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        self._check_open()
        size = -1 if size is None else operator.index(size)
        if not size:
            return b""
        data = bytearray(self.available(None if size < 0 else size))
        count = self.readinto(data)
        return bytes(memoryview(data)[:count])

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)

    def fetch(self, start: int, end: int, target: memoryview) -> int:
        """Receive ``[start, end)`` into ``target`` by one request; return how many bytes came.

        Raises:
            TruncatedObjectError: The stream ended before the range did.
        """
        stream = self._get_stream(start, end)
        try:
            count = fill_from(stream, target)
        finally:
            stream.close()
        if count < end - start:
            raise TruncatedObjectError(
                "the stream ended before the end of the range",
                bucket=self.bucket,
                key=self.key,
                byte_range=(start, end),
            )
        return count

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"the reader of s3://{self._bucket}/{self._key} is closed")


def fill_from(stream: ObjectStream, target: memoryview) -> int:
    """Read until ``target`` is full or the stream has ended; return how many bytes came.

    After an exception nobody knows where the stream stands: it must not be read on.
    """
    filled = 0
    while filled < len(target):
        count = stream.readinto(target[filled:])
        if not count:
            break
        filled += count
    return filled
