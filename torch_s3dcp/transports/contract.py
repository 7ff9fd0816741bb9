"""What a transport promises. No network here."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ..exceptions import ConfigurationError, TruncatedObjectError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class ObjectInfo:
    """What is known of an object without its data. ``size`` is in bytes."""

    bucket: str
    key: str
    size: int
    etag: str | None = None
    last_modified: datetime.datetime | None = None
    storage_class: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ListPage:
    """One page of a listing."""

    object_info: tuple[ObjectInfo, ...]
    common_prefixes: tuple[str, ...] = ()


@runtime_checkable
class RawBody(Protocol):
    """What a client library hands out for the body of one response."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...

    def close(self) -> None: ...


class ObjectBody(io.RawIOBase):
    """The bytes ``[start, end)`` of an object, arriving.

    ``info.size`` is the size of the whole object. ``readinto`` blocks until there are bytes
    and returns 0 only when all of the range has been handed out; a body that ends early
    raises :class:`TruncatedObjectError`. Iterating gives blocks of at most 1 MiB.
    ``retries`` counts the requests that failed before this one was answered.
    """

    def __init__(
        self, raw: RawBody, info: ObjectInfo, start: int, end: int, *, retries: int = 0
    ) -> None:
        self.info = info
        self.start = start
        self.end = end
        self.position = start
        self.retries = retries
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        if self.closed:
            raise ValueError("read of a closed ObjectBody")
        view = memoryview(buffer)
        if not view.nbytes or self.position == self.end:
            return 0
        target = view.cast("B")[: self.end - self.position]
        count = self._raw.readinto(target)
        if not count:
            raise TruncatedObjectError(
                f"the body of the answer ended at byte {self.position}",
                bucket=self.info.bucket,
                key=self.info.key,
                byte_range=(self.start, self.end),
                operation="GetObject",
            )
        self.position += count
        return count

    def __iter__(self) -> Iterator[bytes]:
        while block := self.read(_CHUNK):
            yield block

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def check_span(start: int, end: int | None) -> None:
    """Reject byte ranges that mean nothing.

    Raises:
        ConfigurationError: Not ``0 <= start <= end`` (a ValueError).
    """
    if start < 0 or (end is not None and end < start):
        raise ConfigurationError(
            f"invalid byte range [{start}, {'' if end is None else end}): "
            "it needs 0 <= start <= end"
        )


def too_short(info: ObjectInfo, start: int, end: int) -> TruncatedObjectError:
    """The error for a range that ends, or is empty and lies, beyond an object's end."""
    return TruncatedObjectError(
        f"the object has only {info.size} bytes",
        bucket=info.bucket,
        key=info.key,
        byte_range=(start, end),
        operation="GetObject",
    )


@dataclass(frozen=True)
class Uploaded:
    """What an upload came to.

    ``size`` is in bytes: what the store has, where it said so or was asked, else what was sent.
    ``requests`` counts the requests made, without ``retries``, those that were made again.
    """

    size: int
    requests: int = 1
    retries: int = 0


@runtime_checkable
class BlockSource(Protocol):
    """What a stream to upload may also be: bytes that need not be joined to be sent.

    Offsets count from the stream's beginning. ``take`` is called by one thread, the others by
    several.
    """

    def take(self, size: int) -> list[memoryview]:
        """The next ``size`` bytes, as the blocks where they lie; fewer only at the end.

        Their memory stays as it is until they are released. It may wait for what was taken
        before, all but the last time, to be released: a transport may keep the bytes of one call
        back while it asks for more, and no others.
        """
        ...

    def checksum(self, start: int, blocks: Iterable[memoryview]) -> int:
        """The CRC64NVME of what ``take`` gave at ``start``. To be asked for once, for all bytes."""
        ...

    def release(self, start: int, size: int) -> None:
        """These bytes are stored: their memory may be used again.

        Told once of all bytes. What it raises ends the upload.
        """
        ...

    def give_up(self, error: BaseException) -> None:
        """Not all that was taken will be stored: a ``take`` that waits raises the error."""
        ...


@dataclass(frozen=True)
class CopiedRange:
    """The bytes ``[start, end)`` of one version of an object. ``checksum``: their CRC64NVME."""

    bucket: str
    key: str
    start: int
    end: int
    etag: str | None
    checksum: int

    def __len__(self) -> int:
        return self.end - self.start


@runtime_checkable
class Composes(Protocol):
    """A transport that can have the store put objects together from what it has."""

    def check_compose(self) -> None:
        """See whether it is set up for it.

        Raises:
            ConfigurationError: It is not.
        """
        ...

    def compose(
        self,
        bucket: str,
        key: str,
        copied: Sequence[CopiedRange],
        stream: io.RawIOBase,
        *,
        expected_size: int,
    ) -> Uploaded:
        """Store ranges of objects, one behind the other, and then what ``stream`` yields.

        Args:
            copied: Each of 5 MiB to 5 GiB; the last may be shorter where the stream is empty.
            stream: As for ``upload``.
            expected_size: About how many bytes the stream has.

        Raises:
            ObjectNotFoundError: An object to copy from is gone.
            PreconditionFailedError: It is another version.
            IntegrityError: The store's bytes have another checksum.
            BaseException: Whatever the stream raised. Nothing stays behind then.
        """
        ...


@runtime_checkable
class Prepares(Protocol):
    """A transport that has something to make before its first request, such as a client."""

    def prepare(self) -> None:
        """Make it now. No request is sent."""
        ...


@runtime_checkable
class Reconnects(Protocol):
    """A transport that keeps connections open between requests."""

    def reconnect(self) -> None:
        """Send further requests over none of the connections that are open now."""
        ...


def reconnect(transport: object) -> None:
    """Have further requests go over new connections, where a transport keeps any."""
    if isinstance(transport, Reconnects):
        transport.reconnect()


class Transport(Protocol):
    """Single requests against an object store.

    Every method raises errors of :mod:`torch_s3dcp.exceptions` and no others for what the
    store or the network does. Methods may be called from several threads at once. A
    transport that is to be used by ``dcp.async_save`` in a process must be picklable.
    """

    def head(self, bucket: str, key: str) -> ObjectInfo:
        """Size and ETag of an object; raises ObjectNotFoundError if there is none."""
        ...

    def get(
        self,
        bucket: str,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        if_match: str | None = None,
    ) -> ObjectBody:
        """Begin to receive ``[start, end)``, or all from ``start`` on.

        Exactly these bytes are served; all from the object's end on is nothing.

        Raises:
            TruncatedObjectError: The object has fewer than ``start`` or ``end`` bytes.
            ObjectChangedError: The object's ETag is not ``if_match``.
            ConfigurationError: Not ``0 <= start <= end``.
        """
        ...

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store a small object in one request; visible only when complete.

        Raises:
            PreconditionFailedError: The object's ETag is not ``if_match`` (nor is there one
                without an object), or the object exists and ``if_none_match`` was given. A server
                that does not know conditions stores the object.
        """
        ...

    def upload(
        self,
        bucket: str,
        key: str,
        stream: io.RawIOBase,
        *,
        expected_size: int | None,
        storage_class: str | None = None,
    ) -> Uploaded:
        """Store what ``stream`` yields until its end; visible only when complete.

        Args:
            stream: Its ``read`` may give less than it was asked for, but never None. Those of
                saves are a :class:`BlockSource` too; using that is up to the transport.
            expected_size: About how many bytes will come; decides the part size. None:
                nobody knows, and the stream may wait for its producer at any point; other
                uploads go on meanwhile.
            storage_class: Storage class of the object, where the store has such; None: as
                the transport is configured.

        Raises:
            BaseException: Whatever ``stream.read`` raised. Nothing stays behind then.
        """
        ...

    def copy(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str) -> None:
        """Copy an object on the server, of any size."""
        ...

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        """Remove objects. One that does not exist is no error."""
        ...

    def list(
        self,
        bucket: str,
        prefix: str = "",
        *,
        delimiter: str = "",
        page_size: int = 1000,
    ) -> Iterator[ListPage]:
        """Objects whose keys begin with ``prefix``, in pages, ascending by key."""
        ...
