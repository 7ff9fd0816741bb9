"""S3 through boto3 and s3transfer: the default transport."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, cast

from botocore.exceptions import ClientError
from s3transfer.exceptions import S3CopyFailedError

from ..checksums import CRC64, Checksum, combinable
from ..config import S3ClientConfig
from ..exceptions import (
    ConfigurationError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from ..parts import part_size_for
from .answers import changed, info_of
from .clients import Client, client_for, part_uploader, patient_uploader, uploader_for
from .contract import (
    CopiedRange,
    ListPage,
    ObjectBody,
    ObjectInfo,
    Uploaded,
)
from .deleting import delete_objects
from .errors import translated
from .options import copied_from, copying, opening, payer, storing
from .reading import Reading
from .sending import Target
from .source import StreamSource, block_source
from .uploading import Uploader

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client as Boto3S3Client

_log = logging.getLogger(__name__)
# Larger objects are copied in parts, several at a time. S3 itself would allow 5 GiB.
LARGEST_SINGLE_COPY = 1024**3
# A stream of unknown length cannot choose its part size by its length: with parts of 66 MiB
# 10,000 of them hold 644 GiB.
_UNKNOWN_SIZE = 320 * 1024**3


@dataclass(frozen=True)
class BotoTransport:
    """Requests through a boto3 client that is made on first use, once per process.

    The value itself holds settings only, so it can be pickled and survives a fork.

    Args:
        region: Region of the buckets; None: as boto3 finds it.
        config: All other settings.
        agent: Text for the user agent, after the package's own name.
    """

    region: str | None = None
    config: S3ClientConfig = field(default_factory=S3ClientConfig)
    agent: str = ""

    @property
    def client(self) -> Boto3S3Client:
        """The boto3 client behind this transport. What is asked of it is not tried again."""
        return self._client().boto

    @property
    def _insisting(self) -> Any:
        """To be called like the client; tries again what fails."""
        return self._client().insisting

    def _client(self) -> Client:
        return client_for(self.region, self.config, self.agent)

    def prepare(self) -> None:
        """Make the client: some tenths of a second, once per process and settings."""
        _ = self.client

    def reconnect(self) -> None:
        """Leave the connections that GETs came over."""
        connections = self._client().connections
        if connections is not None:
            connections.reconnect()

    def head(self, bucket: str, key: str) -> ObjectInfo:
        return self._reading().head(bucket, key)

    def get(
        self,
        bucket: str,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        if_match: str | None = None,
    ) -> ObjectBody:
        return self._reading().get(bucket, key, start, end, if_match)

    def _reading(self) -> Reading:
        return Reading(self._client(), self.config)

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
        checksum = self._checksum()
        options: dict[str, Any] = {
            **opening(self.config),
            **storing(self.config, checksum=checksum is None),
            "Metadata": metadata or {},
        }
        if checksum is not None:
            # Over https botocore would send its own behind the body, which becomes a file by that.
            options.update(checksum.with_data(checksum.of([memoryview(data)])))
        conditions: dict[str, Any] = {}
        if if_match is not None:
            conditions["IfMatch"] = if_match
        if if_none_match:
            conditions["IfNoneMatch"] = "*"
        try:
            with translated("PutObject", bucket, key):
                answer = self._store(bucket, key, data, options, conditions)
        except ObjectNotFoundError as error:
            if if_match is None:
                raise
            # S3's way of saying that If-Match found nothing to compare with.
            raise PreconditionFailedError(
                "the object is not in the expected state: it does not exist", **error.context
            ) from error
        return ObjectInfo(bucket, key, len(data), answer.get("ETag"), metadata=metadata or {})

    def upload(
        self,
        bucket: str,
        key: str,
        stream: io.RawIOBase,
        *,
        expected_size: int | None,
        storage_class: str | None = None,
    ) -> Uploaded:
        size = _UNKNOWN_SIZE if expected_size is None else expected_size
        part_size = part_size_for(size, self.config.part_size)
        if expected_size is None or combinable(self.config.checksum_algorithm) is None:
            return self._transfer(bucket, key, stream, expected_size, part_size, storage_class)
        target = self._target(bucket, key, storage_class)
        return self._uploader().upload(target, block_source(stream), part_size)

    def check_compose(self) -> None:
        algorithm = self.config.checksum_algorithm
        if combinable(algorithm) is not CRC64:
            raise ConfigurationError(
                "the bytes of earlier objects are known by their CRC64NVME, so that "
                f"checksum_algorithm={algorithm!r} could not tell whether they are still the same; "
                "leave it out, or use CRC64NVME"
            )

    def compose(
        self,
        bucket: str,
        key: str,
        copied: Sequence[CopiedRange],
        stream: io.RawIOBase,
        *,
        expected_size: int,
    ) -> Uploaded:
        self.check_compose()
        part_size = part_size_for(expected_size, self.config.part_size)
        target = self._target(bucket, key)
        return self._uploader().compose(target, copied, block_source(stream), part_size)

    def _uploader(self) -> Uploader:
        return part_uploader(self._client(), self.config)

    def _target(self, bucket: str, key: str, storage_class: str | None = None) -> Target:
        return Target(
            bucket,
            key,
            opening(self.config),
            storing(self.config, storage_class, checksum=False),
            self._checksum(),
            copied_from(self.config),
        )

    def _transfer(
        self,
        bucket: str,
        key: str,
        stream: io.RawIOBase,
        expected_size: int | None,
        part_size: int,
        storage_class: str | None,
    ) -> Uploaded:
        """Have s3transfer upload what nobody knows the size of, or with other checksums."""
        if expected_size is None:
            manager = patient_uploader(self._client(), part_size)
        else:
            manager = uploader_for(self._client(), self.config, part_size)
        options = {**opening(self.config), **storing(self.config, storage_class)}
        source = StreamSource(stream)
        try:
            with translated("Upload", bucket, key):
                manager.upload(cast("IO[bytes]", source), bucket, key, extra_args=options).result()
        except BaseException:
            if source.error is not None:
                raise source.error from None
            raise
        # Those of s3transfer: parts, and what surrounds them. It keeps its retries to itself.
        parts = -(-source.size // part_size)
        return Uploaded(source.size, 1 if source.size < part_size else parts + 2)

    def copy(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str) -> None:
        options = copying(self.config)
        source: Any = {"Bucket": src_bucket, "Key": src_key}
        info = self.head(src_bucket, src_key)
        with translated("CopyObject", src_bucket, src_key):
            if info.size <= LARGEST_SINGLE_COPY:
                self._insisting.copy_object(
                    CopySource=source, Bucket=dst_bucket, Key=dst_key, **options
                )
                return
            # A copy in parts takes nothing over but the bytes.
            options["Metadata"] = info.metadata
            part_size = part_size_for(info.size, self.config.part_size)
            manager = uploader_for(self._client(), self.config, part_size)
            try:
                manager.copy(source, dst_bucket, dst_key, extra_args=options).result()
            except S3CopyFailedError as error:
                raise changed(src_bucket, src_key) from error

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        names = list(keys)
        if len(names) == 1:
            with translated("DeleteObject", bucket, names[0]):
                self._insisting.delete_object(Bucket=bucket, Key=names[0], **payer(self.config))
            return
        client = self._client()
        delete_objects(client.insisting, client.limits, bucket, names, payer(self.config))

    def list(
        self,
        bucket: str,
        prefix: str = "",
        *,
        delimiter: str = "",
        page_size: int = 1000,
    ) -> Iterator[ListPage]:
        further: dict[str, Any] = {}
        while True:
            with translated("ListObjectsV2", bucket, prefix):
                page = self._insisting.list_objects_v2(
                    Bucket=bucket,
                    Prefix=prefix,
                    Delimiter=delimiter,
                    MaxKeys=page_size,
                    **further,
                    **payer(self.config),
                )
            yield ListPage(
                tuple(info_of(bucket, o["Key"], o, o["Size"]) for o in page.get("Contents", [])),
                tuple(p["Prefix"] for p in page.get("CommonPrefixes", [])),
            )
            token = page.get("NextContinuationToken")
            if not (page.get("IsTruncated") and token):
                return
            if token == further.get("ContinuationToken"):
                raise StorageError(
                    "the server gives the same page of a listing again and again",
                    bucket=bucket,
                    key=prefix,
                    operation="ListObjectsV2",
                )
            further = {"ContinuationToken": token}

    def _store(
        self,
        bucket: str,
        key: str,
        data: bytes,
        options: Mapping[str, Any],
        conditions: Mapping[str, Any],
    ) -> Any:
        try:
            return self._insisting.put_object(
                Bucket=bucket, Key=key, Body=data, **options, **conditions
            )
        except ClientError as error:
            unknown = error.response.get("Error", {}).get("Code") == "NotImplemented"
            if not (conditions and unknown):
                raise
            _log.warning("%s knows no conditional writes; writing without", bucket)
            return self._insisting.put_object(Bucket=bucket, Key=key, Body=data, **options)

    def _checksum(self) -> Checksum | None:
        """The checksum to send, where it is one that can be combined."""
        if self.config.checksum_algorithm is None:
            # The user's settings may leave checksums out where S3 does not ask for them.
            chosen = getattr(self.client.meta.config, "request_checksum_calculation", None)
            if chosen == "when_required":
                return None
        return combinable(self.config.checksum_algorithm)
