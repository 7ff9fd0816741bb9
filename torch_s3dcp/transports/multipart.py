"""One multipart upload: created, filled with parts at the same time, completed or aborted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from ..exceptions import S3DCPError, StorageError
from .contract import Uploaded
from .errors import code_of, translated
from .sending import Body, Sender, Target, is_as_sent

_log = logging.getLogger(__name__)
# What servers say that know no checksum of the whole object.
_UNKNOWN = frozenset({"NotImplemented", "InvalidRequest", "InvalidArgument"})


@dataclass(frozen=True)
class _Part:
    """A part that the server has."""

    number: int
    size: int
    etag: str
    checksum: int


class Multipart:
    """One multipart upload; ``run`` does it.

    Args:
        sender: Its client makes the requests, its pool sends the parts.
        target: What is written.
    """

    def __init__(self, sender: Sender, target: Target) -> None:
        self._sender = sender
        self._client = sender.client
        self._target = target
        self._whole = target.checksum is not None
        """Whether the server knows checksums of whole objects."""
        self._failed = threading.Event()
        self._failures: list[BaseException] = []

    def run(self, bodies: Iterable[Body]) -> Uploaded:
        """Create it, send the parts, complete it; on failure abort it."""
        with translated("CreateMultipartUpload", self._target.bucket, self._target.key):
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
            size = sum(part.size for part in parts)
            with translated("CompleteMultipartUpload", self._target.bucket, self._target.key):
                answer, said = self._complete(upload, parts, size)
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
        return self._sender.confirmed(self._target, answer, size, said)

    def _begin(self, upload: str, number: int, body: Body) -> Future[_Part]:
        return self._sender.begin(len(body), lambda: self._send(upload, number, body))

    def _create(self) -> str:
        asked = {**self._target.place, **self._target.storing}
        checksum = self._target.checksum
        if checksum is not None:
            algorithm: Any = checksum.name
            try:
                answer = self._client.create_multipart_upload(
                    **asked, ChecksumAlgorithm=algorithm, ChecksumType="FULL_OBJECT"
                )
            except ClientError as error:
                if code_of(error) not in _UNKNOWN:
                    raise
                _log.debug("%s: no checksum of whole objects: %s", self._target.bucket, error)
                self._whole = False
        if not self._whole:
            answer = self._client.create_multipart_upload(**asked)
        self._target.count(answer)
        return answer["UploadId"]

    def _send(self, upload: str, number: int, body: Body) -> _Part:
        if self._failed.is_set():
            raise InterruptedError("another part of the upload failed")
        target = self._target
        try:
            value = body.checksum(target.checksum)
            with translated("UploadPart", target.bucket, target.key):
                answer = self._sender.insist(
                    target,
                    "upload_part",
                    UploadId=upload,
                    PartNumber=number,
                    Body=body.blocks,
                    **target.place,
                    **target.said(value),
                )
            part = _Part(number, len(body), _etag(answer, target), value)
            body.release()
        except BaseException as error:
            self._failures.append(error)
            self._failed.set()
            body.give_up(error)  # its source may be waiting for this part
            raise
        return part

    def _complete(self, upload: str, parts: list[_Part], size: int) -> tuple[Any, dict[str, Any]]:
        """The server's answer, and the checksum that it was told."""
        listed: list[Any] = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        said: dict[str, Any] = {}
        options: dict[str, Any] = {}
        checksum = self._target.checksum
        if checksum is not None and self._whole:
            total = 0
            for entry, part in zip(listed, parts, strict=True):
                total = checksum.combine(total, part.checksum, part.size)
                entry.update(self._target.said(part.checksum))
            said = self._target.said(total)
            options = {"ChecksumType": "FULL_OBJECT", "MpuObjectSize": size}
        try:
            answer: Any = self._client.complete_multipart_upload(
                UploadId=upload,
                MultipartUpload={"Parts": listed},
                **self._target.place,
                **said,
                **options,
            )
        except ClientError as error:
            # Tried again after its answer was lost, it finds the upload gone.
            again = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
            gone = again and code_of(error) == "NoSuchUpload"
            if not gone or not self._is_there(size, said):
                raise
            answer = error.response
        self._target.count(answer)
        return answer, said

    def _is_there(self, size: int, said: Mapping[str, str]) -> bool:
        try:
            return is_as_sent(self._sender.look(self._target), size, said)
        except ClientError:
            return False

    def _abort(self, upload: str) -> None:
        target = self._target
        try:
            with translated("AbortMultipartUpload", target.bucket, target.key):
                self._client.abort_multipart_upload(UploadId=upload, **target.place)
        except S3DCPError as error:
            _log.error(
                "parts of a failed upload stay behind at s3://%s/%s, upload %s: %s",
                target.bucket,
                target.key,
                upload,
                error,
            )


def _etag(answer: Any, target: Target) -> str:
    if "ETag" not in answer:
        raise StorageError(
            "the server did not name the part that it stored",
            bucket=target.bucket,
            key=target.key,
            operation="UploadPart",
        )
    return str(answer["ETag"])
