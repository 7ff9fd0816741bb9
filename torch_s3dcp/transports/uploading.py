"""Uploads in parts, sent straight from the memory where their bytes lie.

Many parts are in flight over all uploads of a client, bounded in number and in bytes. Each
is sent with its checksum, and completing the upload names that of the whole object, so
that the server refuses what was damaged on the way.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from ..exceptions import S3DCPError, StorageError
from .blocks import Blocks
from .checksums import Checksum
from .contract import BlockSource
from .errors import translated

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client as Boto3S3Client

_log = logging.getLogger(__name__)

# Tries of a request whose body arrived damaged: a fault of the way, not of the request.
_ATTEMPTS = 4
_DAMAGED = frozenset({"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch"})
# What servers say that know no checksum of the whole object.
_UNKNOWN = frozenset({"NotImplemented", "InvalidRequest", "InvalidArgument"})


@dataclass(frozen=True)
class _Part:
    """A part that the server has."""

    number: int
    size: int
    etag: str
    checksum: int


@dataclass(frozen=True)
class _Target:
    """The object that is being written, and how."""

    bucket: str
    key: str
    options: Mapping[str, Any]
    """What every request about its bytes carries."""
    storing: Mapping[str, Any]
    """What the request carries that creates it."""

    @property
    def place(self) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self.key, **self.options}

    @property
    def given_up(self) -> dict[str, Any]:
        """Of giving up an upload: that takes no customer's key."""
        return {n: value for n, value in self.place.items() if not n.startswith("SSECustomer")}


class Room:
    """Bytes that may be in flight; a part larger than that goes alone."""

    def __init__(self, size: int) -> None:
        self._free = self._size = size
        self._changed = threading.Condition()

    def enter(self, size: int) -> None:
        """Wait until there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= min(size, self._size))
            self._free -= size

    def leave(self, size: int) -> None:
        """Make room."""
        with self._changed:
            self._free += size
            self._changed.notify_all()


@dataclass
class Uploader:
    """Uploads objects through a boto3 client.

    Args:
        client: Signs and sends.
        concurrency: Parts in flight at most.
        memory_budget: Their bytes at most.
    """

    client: Boto3S3Client
    concurrency: int
    memory_budget: int
    _room: Room = field(init=False)
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._room = Room(self.memory_budget)
        self._pool = ThreadPoolExecutor(self.concurrency, "s3dcp-upload")

    def upload(
        self,
        bucket: str,
        key: str,
        source: BlockSource,
        *,
        part_size: int,
        checksum: Checksum | None,
        options: Mapping[str, Any],
        storing: Mapping[str, Any],
    ) -> None:
        """Store all that the source has; visible only when complete.

        Raises:
            S3DCPError: A request failed for good.
            BaseException: Whatever the source raised. Nothing stays behind then.
        """
        target = _Target(bucket, key, options, storing)
        first = deque([Blocks(source.take(part_size))])
        if len(first[0]) == part_size:
            first.append(Blocks(source.take(part_size)))
        if len(first[-1]) and len(first) > 1:
            _Multipart(self, target, checksum).run(_parts(first, source, part_size))
        else:
            self._put(target, first[0], checksum)

    def _put(self, target: _Target, body: Blocks, checksum: Checksum | None) -> None:
        value = checksum.with_data(checksum.of(body)) if checksum else {}
        self._room.enter(len(body))
        try:
            with translated("PutObject", target.bucket, target.key):
                self.insist("put_object", Body=body, **target.place, **target.storing, **value)
        finally:
            self._room.leave(len(body))

    def begin(self, body: Blocks, send: Any) -> Future[_Part]:
        """Have a part sent, when there is room for it."""
        size = len(body)
        self._room.enter(size)
        try:
            future: Future[_Part] = self._pool.submit(send)
        except BaseException:
            self._room.leave(size)
            raise
        future.add_done_callback(lambda _: self._room.leave(size))
        return future

    def insist(self, method: str, **parameters: Any) -> Any:
        """Make a request, again if its body arrived damaged."""
        for attempt in count(1):
            parameters["Body"].seek(0)
            try:
                return getattr(self.client, method)(**parameters)
            except ClientError as error:
                if _code(error) not in _DAMAGED or attempt == _ATTEMPTS:
                    raise
                _log.warning(
                    "s3://%s/%s: bytes were damaged on the way; sending them again",
                    parameters["Bucket"],
                    parameters["Key"],
                )
        raise AssertionError


@dataclass
class _Multipart:
    """One multipart upload."""

    uploader: Uploader
    target: _Target
    checksum: Checksum | None
    whole: bool = True
    """Whether the server knows checksums of whole objects."""
    _failed: threading.Event = field(default_factory=threading.Event)
    _failures: list[BaseException] = field(default_factory=list)

    def run(self, bodies: Iterator[Blocks]) -> None:
        """Create it, send the parts, complete it; on failure abort it."""
        with translated("CreateMultipartUpload", self.target.bucket, self.target.key):
            upload = self._create()
        futures: list[Future[_Part]] = []
        try:
            for number, body in enumerate(bodies, 1):
                futures.append(self._begin(upload, number, body))
                del body  # from here on the request alone keeps it
                if self._failed.is_set():
                    break
            wait(futures)
            if self._failures:
                raise self._failures[0]
            parts = [future.result() for future in futures]
            with translated("CompleteMultipartUpload", self.target.bucket, self.target.key):
                self._complete(upload, parts)
        except BaseException:
            self._failed.set()
            for future in futures:
                future.cancel()
            try:
                # What is sent after the abort would stay behind.
                wait(futures)
            finally:
                self._abort(upload)
            raise

    def _begin(self, upload: str, number: int, body: Blocks) -> Future[_Part]:
        return self.uploader.begin(body, lambda: self._send(upload, number, body))

    def _create(self) -> str:
        asked = {**self.target.place, **self.target.storing}
        client = self.uploader.client
        if self.checksum is None:
            self.whole = False
            return client.create_multipart_upload(**asked)["UploadId"]
        algorithm: Any = self.checksum.name
        try:
            answer = client.create_multipart_upload(
                **asked, ChecksumAlgorithm=algorithm, ChecksumType="FULL_OBJECT"
            )
        except ClientError as error:
            if _code(error) not in _UNKNOWN:
                raise
            _log.debug("%s: no checksum of whole objects: %s", self.target.bucket, error)
            self.whole = False
            answer = client.create_multipart_upload(**asked)
        return answer["UploadId"]

    def _send(self, upload: str, number: int, body: Blocks) -> _Part:
        if self._failed.is_set():
            raise InterruptedError("another part of the upload failed")
        try:
            checksum = self.checksum
            value = checksum.of(body) if checksum else 0
            said = checksum.with_data(value) if checksum else {}
            with translated("UploadPart", self.target.bucket, self.target.key):
                answer = self.uploader.insist(
                    "upload_part",
                    UploadId=upload,
                    PartNumber=number,
                    Body=body,
                    **self.target.place,
                    **said,
                )
            part = _Part(number, len(body), _etag(answer, self.target), value)
        except BaseException as error:
            self._failures.append(error)
            self._failed.set()
            raise
        return part

    def _complete(self, upload: str, parts: list[_Part]) -> None:
        size = sum(part.size for part in parts)
        listed: list[Any] = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        whole: dict[str, Any] = {}
        checksum = self.checksum
        if checksum is not None and self.whole:
            total = 0
            for entry, part in zip(listed, parts, strict=True):
                total = checksum.combine(total, part.checksum, part.size)
                entry[checksum.member] = checksum.text(part.checksum)
            whole = {
                checksum.member: checksum.text(total),
                "ChecksumType": "FULL_OBJECT",
                "MpuObjectSize": size,
            }
        try:
            self.uploader.client.complete_multipart_upload(
                UploadId=upload, MultipartUpload={"Parts": listed}, **self.target.place, **whole
            )
        except ClientError as error:
            # Tried again after its answer was lost, it finds the upload gone.
            again = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
            gone = again and _code(error) == "NoSuchUpload"
            if not gone or not self._is_there(size, whole):
                raise

    def _is_there(self, size: int, whole: Mapping[str, Any]) -> bool:
        try:
            found: Any = self.uploader.client.head_object(
                **self.target.place, ChecksumMode="ENABLED"
            )
        except ClientError:
            return False
        wrong = {
            name
            for name, value in whole.items()
            if name.startswith("Checksum") and found.get(name, value) != value
        }
        return bool(found["ContentLength"] == size and not wrong)

    def _abort(self, upload: str) -> None:
        try:
            with translated("AbortMultipartUpload", self.target.bucket, self.target.key):
                self.uploader.client.abort_multipart_upload(UploadId=upload, **self.target.given_up)
        except S3DCPError as error:
            _log.error(
                "parts of a failed upload stay behind at s3://%s/%s, upload %s: %s",
                self.target.bucket,
                self.target.key,
                upload,
                error,
            )


def _parts(first: deque[Blocks], source: BlockSource, part_size: int) -> Iterator[Blocks]:
    """The first parts, then the rest; none is kept here once it was handed out."""
    while first:
        yield first.popleft()
    while blocks := source.take(part_size):
        yield Blocks(blocks)


def _etag(answer: Any, target: _Target) -> str:
    if "ETag" not in answer:
        raise StorageError(
            "the server did not name the part that it stored",
            bucket=target.bucket,
            key=target.key,
            operation="UploadPart",
        )
    return str(answer["ETag"])


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
