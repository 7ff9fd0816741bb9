"""A transport around a transport, which delegates every request."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..exceptions import ConfigurationError
from ..transports.contract import (
    Composes,
    CopiedRange,
    ListPage,
    ObjectBody,
    ObjectInfo,
    RawBody,
    Reconnects,
    Transport,
    Uploaded,
)

OPERATIONS = ("head", "get", "put", "upload", "compose", "copy", "delete", "list")


@dataclass
class Call:
    """One call of a transport's method, or one page of a listing, while it goes on.

    ``key`` is the prefix of a listing, and None where several objects are deleted. ``start``
    and ``end`` are what was asked for. ``bytes`` is what has been moved so far: received
    from a ``get``'s body, sent by a ``put``, read from an ``upload``'s stream.
    """

    operation: str
    bucket: str
    key: str | None
    start: int | None = None
    end: int | None = None
    bytes: int = 0


class TransportWrapper:
    """Delegates every request; a subclass overrides what it wants to see or to change.

    Args:
        transport: Does the requests.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def before(self, call: Call) -> None:
        """Called before each request. What it raises is raised instead of the request."""

    def body(self, call: Call, raw: RawBody) -> RawBody:
        """The body to hand out instead of ``raw``."""
        return raw

    def stream(self, call: Call, stream: io.RawIOBase) -> io.RawIOBase:
        """The stream to upload instead of ``stream``."""
        return stream

    def head(self, bucket: str, key: str) -> ObjectInfo:
        self._begin("head", bucket, key)
        return self.transport.head(bucket, key)

    def get(
        self,
        bucket: str,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        if_match: str | None = None,
    ) -> ObjectBody:
        call = self._begin("get", bucket, key, start, end)
        body = self.transport.get(bucket, key, start, end, if_match=if_match)
        return ObjectBody(self.body(call, body), body.info, body.start, body.end)

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
        self._begin("put", bucket, key, size=len(data))
        return self.transport.put(
            bucket, key, data, if_match=if_match, if_none_match=if_none_match, metadata=metadata
        )

    def upload(
        self,
        bucket: str,
        key: str,
        stream: io.RawIOBase,
        *,
        expected_size: int | None,
        storage_class: str | None = None,
    ) -> Uploaded:
        call = self._begin("upload", bucket, key)
        return self.transport.upload(
            bucket,
            key,
            self.stream(call, stream),
            expected_size=expected_size,
            storage_class=storage_class,
        )

    def reconnect(self) -> None:
        if isinstance(self.transport, Reconnects):
            self.transport.reconnect()

    def check_compose(self) -> None:
        self._composing().check_compose()

    def compose(
        self,
        bucket: str,
        key: str,
        copied: Sequence[CopiedRange],
        stream: io.RawIOBase,
        *,
        expected_size: int,
    ) -> Uploaded:
        call = self._begin("compose", bucket, key)
        stream = self.stream(call, stream)
        return self._composing().compose(bucket, key, copied, stream, expected_size=expected_size)

    def copy(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str) -> None:
        self._begin("copy", src_bucket, src_key)
        self.transport.copy(src_bucket, src_key, dst_bucket, dst_key)

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        names = list(keys)
        self._begin("delete", bucket, names[0] if len(names) == 1 else None)
        self.transport.delete(bucket, names)

    def list(
        self,
        bucket: str,
        prefix: str = "",
        *,
        delimiter: str = "",
        page_size: int = 1000,
    ) -> Iterator[ListPage]:
        pages = self.transport.list(bucket, prefix, delimiter=delimiter, page_size=page_size)
        self._begin("list", bucket, prefix)
        for number, page in enumerate(pages):
            if number:
                self._begin("list", bucket, prefix)
            yield page

    def _composing(self) -> Composes:
        if not isinstance(self.transport, Composes):
            raise ConfigurationError(f"{type(self.transport).__name__} cannot compose objects")
        return self.transport

    def _begin(
        self,
        operation: str,
        bucket: str,
        key: str | None,
        start: int | None = None,
        end: int | None = None,
        size: int = 0,
    ) -> Call:
        call = Call(operation, bucket, key, start, end, size)
        self.before(call)
        return call
