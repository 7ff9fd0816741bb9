"""One multipart upload: created, filled with parts at the same time, completed or aborted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from ..exceptions import IntegrityError, S3DCPError, StorageError
from .contract import BlockSource, CopiedRange, Uploaded
from .effort import Halt, halt_here, halted_by
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
        source: Gives the parts; told when one has failed.
    """

    def __init__(self, sender: Sender, target: Target, source: BlockSource) -> None:
        self._source = source
        self._sender = sender
        self._client = sender.client
        self._target = target
        # Whether the server knows checksums of whole objects.
        self._whole = target.checksum is not None
        # The other parts of a failed upload neither pause nor wait for the server any longer.
        self._failed = Halt()
        self._failures: list[BaseException] = []

    def run(self, pieces: Iterable[Body | CopiedRange]) -> Uploaded:
        """Create it, send or copy the parts, complete it; on failure abort it.

        What halts the calling thread's requests ends the parts, too.
        """
        halt = halt_here()
        if halt is None:
            return self._run(pieces)
        with halt.ending(self._failed.set):
            return self._run(pieces)

    def _run(self, pieces: Iterable[Body | CopiedRange]) -> Uploaded:
        with translated("CreateMultipartUpload", self._target.bucket, self._target.key):
            upload = self._create()
        futures: list[Future[_Part]] = []
        try:
            for number, piece in enumerate(pieces, 1):
                futures.append(self._begin(upload, number, piece))
                del piece  # from here on the request alone keeps it
                if self._failed.is_set():
                    break
            wait(futures)
            if self._failures:
                raise self._failures[0]
            if self._failed.is_set():
                raise InterruptedError("the upload was ended before all parts were sent")
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

    def _begin(self, upload: str, number: int, piece: Body | CopiedRange) -> Future[_Part]:
        copied = isinstance(piece, CopiedRange)
        return self._sender.begin(
            0 if copied else len(piece), lambda: self._part(upload, number, piece)
        )

    def _part(self, upload: str, number: int, piece: Body | CopiedRange) -> _Part:
        if self._failed.is_set():
            raise InterruptedError("another part of the upload failed")
        try:
            with halted_by(self._failed):
                if isinstance(piece, CopiedRange):
                    return self._copy(upload, number, piece)
                return self._send(upload, number, piece)
        except BaseException as error:
            # What ends because another part failed tells nothing new.
            if not self._failed.is_set():
                self._failures.append(error)
            self._source.give_up(error)  # it may be waiting for this part
            self._failed.set()
            raise

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
                code = code_of(error)
                _log.debug("%s: no checksum of whole objects: %s", self._target.bucket, code)
                self._whole = False
        if not self._whole:
            answer = self._client.create_multipart_upload(**asked)
        self._target.count(answer)
        return str(answer["UploadId"])

    def _send(self, upload: str, number: int, body: Body) -> _Part:
        target = self._target
        value = body.checksum(target.checksum)
        with translated("UploadPart", target.bucket, target.key):
            answer: Any = self._client.upload_part(
                UploadId=upload,
                PartNumber=number,
                Body=body.blocks,
                **target.place,
                **target.with_data(value),
            )
            target.count(answer)
        part = _Part(number, len(body), _etag(answer, target), value)
        body.release()
        return part

    def _copy(self, upload: str, number: int, piece: CopiedRange) -> _Part:
        target = self._target
        condition: dict[str, Any] = {"CopySourceIfMatch": piece.etag} if piece.etag else {}
        with translated("UploadPartCopy", piece.bucket, piece.key, (piece.start, piece.end)):
            answer = self._client.upload_part_copy(
                UploadId=upload,
                PartNumber=number,
                CopySource={"Bucket": piece.bucket, "Key": piece.key},
                CopySourceRange=f"bytes={piece.start}-{piece.end - 1}",
                **condition,
                **target.copying,
                **target.place,
            )
        target.count(answer)
        found: Any = answer["CopyPartResult"]
        return _Part(number, len(piece), _etag(found, target), _checked(found, piece, target))

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
            # Whatever is halted, this is not.
            with halted_by(None), translated("AbortMultipartUpload", target.bucket, target.key):
                try:
                    self._client.abort_multipart_upload(UploadId=upload, **target.given_up)
                except ClientError as error:
                    # As an abort says that is tried again after its answer was lost.
                    if code_of(error) != "NoSuchUpload":
                        raise
        except S3DCPError as error:
            _log.error(
                "parts of a failed upload stay behind at s3://%s/%s, upload %s: %s",
                target.bucket,
                target.key,
                upload,
                error,
            )


def _checked(found: Any, piece: CopiedRange, target: Target) -> int:
    """The checksum of a copied part, as the server took it, or else as it is known."""
    checksum = target.checksum
    if checksum is None:
        return 0
    said = found.get(checksum.member)
    if said not in (None, checksum.text(piece.checksum)):
        raise IntegrityError(
            "the object has other bytes than were stored in it",
            bucket=piece.bucket,
            key=piece.key,
            byte_range=(piece.start, piece.end),
            operation="UploadPartCopy",
        )
    return piece.checksum


def _etag(answer: Any, target: Target) -> str:
    if "ETag" not in answer:
        raise StorageError(
            "the server did not name the part that it stored",
            bucket=target.bucket,
            key=target.key,
            operation="UploadPart",
        )
    return str(answer["ETag"])
