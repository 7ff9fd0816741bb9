"""The reference transport: objects in a dictionary. It says what the contract means."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checksums import CRC64
from ..exceptions import (
    BucketNotFoundError,
    IntegrityError,
    ObjectChangedError,
    ObjectNotFoundError,
    PreconditionFailedError,
)
from .contract import CopiedRange, ListPage, ObjectBody, ObjectInfo, Uploaded, check_span, too_short


@dataclass(frozen=True)
class _Stored:
    data: bytes
    info: ObjectInfo


class MemoryTransport:
    """Keeps objects in this process. For tests, and as the oracle of other transports."""

    def __init__(self, *buckets: str) -> None:
        self._buckets: dict[str, dict[str, _Stored]] = {name: {} for name in buckets}
        self._lock = threading.Lock()

    def head(self, bucket: str, key: str) -> ObjectInfo:
        return self._find(bucket, key, "HeadObject").info

    def get(
        self,
        bucket: str,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        if_match: str | None = None,
    ) -> ObjectBody:
        check_span(start, end)
        stored = self._find(bucket, key, "GetObject")
        size = len(stored.data)
        if if_match is not None and stored.info.etag != if_match:
            raise ObjectChangedError(
                "the object was replaced while it was being read",
                bucket=bucket,
                key=key,
            )
        end = size if end is None else end
        if start > size or end > size:
            raise too_short(stored.info, start, end)
        return ObjectBody(io.BytesIO(stored.data[start:end]), stored.info, start, end)

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
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        info = ObjectInfo(bucket, key, len(data), etag, metadata=dict(metadata or {}))
        with self._lock:
            objects = self._objects(bucket, "PutObject")
            old = objects.get(key)
            lost = if_match is not None and (old is None or old.info.etag != if_match)
            if lost or (if_none_match and old is not None):
                raise PreconditionFailedError(
                    "the object is not in the expected state",
                    bucket=bucket,
                    key=key,
                    operation="PutObject",
                )
            objects[key] = _Stored(bytes(data), info)
        return info

    def upload(
        self,
        bucket: str,
        key: str,
        stream: io.RawIOBase,
        *,
        expected_size: int | None,
        storage_class: str | None = None,
    ) -> Uploaded:
        self._objects(bucket, "PutObject")
        info = self.put(bucket, key, stream.read(-1) or b"")
        return Uploaded(info.size)

    def copy(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str) -> None:
        stored = self._find(src_bucket, src_key, "CopyObject")
        self.put(dst_bucket, dst_key, stored.data, metadata=stored.info.metadata)

    def check_compose(self) -> None:
        """Nothing can be wrong."""

    def compose(
        self,
        bucket: str,
        key: str,
        copied: Sequence[CopiedRange],
        stream: io.RawIOBase,
        *,
        expected_size: int,
    ) -> Uploaded:
        pieces = [self._copied(piece) for piece in copied]
        info = self.put(bucket, key, b"".join([*pieces, stream.read(-1) or b""]))
        return Uploaded(info.size, len(copied) + 1)

    def _copied(self, piece: CopiedRange) -> bytes:
        stored = self._find(piece.bucket, piece.key, "UploadPartCopy")
        where: dict[str, Any] = {"bucket": piece.bucket, "key": piece.key}
        where["byte_range"] = (piece.start, piece.end)
        if piece.etag not in (None, stored.info.etag):
            raise PreconditionFailedError("the object is another than it was", **where)
        data = stored.data[piece.start : piece.end]
        if CRC64.update(memoryview(data), 0) != piece.checksum:
            raise IntegrityError("the object has other bytes than were stored in it", **where)
        return data

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        with self._lock:
            objects = self._objects(bucket, "DeleteObjects")
            for key in keys:
                objects.pop(key, None)

    def list(
        self,
        bucket: str,
        prefix: str = "",
        *,
        delimiter: str = "",
        page_size: int = 1000,
    ) -> Iterator[ListPage]:
        with self._lock:
            objects = dict(self._objects(bucket, "ListObjectsV2"))
        infos: list[ObjectInfo] = []
        folders: set[str] = set()
        for key in sorted(k for k in objects if k.startswith(prefix)):
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folders.add(prefix + head + delimiter)
            else:
                infos.append(objects[key].info)
        yield ListPage(tuple(infos[:page_size]), tuple(sorted(folders)))
        for cut in range(page_size, len(infos), page_size):
            yield ListPage(tuple(infos[cut : cut + page_size]))

    def _objects(self, bucket: str, operation: str) -> dict[str, _Stored]:
        if bucket not in self._buckets:
            raise BucketNotFoundError(
                "the bucket does not exist", bucket=bucket, operation=operation
            )
        return self._buckets[bucket]

    def _find(self, bucket: str, key: str, operation: str) -> _Stored:
        stored = self._objects(bucket, operation).get(key)
        if stored is None:
            raise ObjectNotFoundError(
                "the object does not exist", bucket=bucket, key=key, operation=operation
            )
        return stored
