"""How a load gets at the metadata, and what it says where there is none."""

from __future__ import annotations

import logging
import time
from typing import Any, cast

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from .checkpoint_metadata import METADATA_NAME, load_metadata, metadata_name
from .client import S3Client
from .exceptions import (
    CheckpointError,
    CheckpointIncompleteError,
    CheckpointNotFoundError,
    IntegrityError,
    InvalidCheckpointError,
    ObjectNotFoundError,
    StorageError,
)
from .filling import MOST_TRIES
from .stats import LoadStats
from .transports import Prepares
from .transports.contract import reconnect
from .uri import S3URI

_log = logging.getLogger(__name__)


class MetadataReads:
    """The reads of metadata through one client.

    torch swallows what reading the metadata raises and then asks for what the rank wrote alone
    (2.8 to 2.15). What went wrong is therefore kept.

    Args:
        client: Does the requests.
        trusted: Whether what is stored may run code.
    """

    def __init__(self, client: S3Client, trusted: bool) -> None:
        self._client = client
        self._trusted = trusted
        self._failure: Exception | None = None
        #: What the last one took, as far as metadata goes.
        self.stats = LoadStats()
        #: How long the server took to answer.
        self.seconds_per_request = 0.0

    def forget_failure(self) -> None:
        """A new load begins."""
        self._failure = None

    def read(self, base: S3URI, load_id: str) -> Metadata:
        """The metadata of the checkpoint at an address.

        Raises:
            CheckpointNotFoundError: There is nothing at this address.
            CheckpointIncompleteError: There is data, but the save never finished.
            InvalidCheckpointError: The metadata is damaged or not allowed.
            IntegrityError: It does not match its checksum, however often it is fetched.
            StorageError: The request failed.
        """
        self._failure = None
        try:
            return self._fetch(base, None, load_id)
        except ObjectNotFoundError as error:
            self._failure = self._explain_absence(base)
            raise self._failure from error
        except Exception as error:
            self._failure = error
            raise

    def read_of_rank(self, base: S3URI, load_id: str, rank: int) -> Metadata:
        """What a rank wrote alone; :class:`UnreadableMetadata` where that cannot be read.

        After a failure other than absence it is not even looked for.
        """
        # "Denied" is not absence: what a rank once wrote alone may be older than what it may
        # not read now.
        absent = (CheckpointNotFoundError, CheckpointIncompleteError)
        if self._failure is not None and not isinstance(self._failure, absent):
            return UnreadableMetadata(self._failure)
        try:
            return self._fetch(base, rank, load_id)
        except ObjectNotFoundError:
            return UnreadableMetadata(self._failure or self._explain_absence(base))
        except Exception as error:  # noqa: BLE001 - raised by set_up_storage_reader
            return UnreadableMetadata(error)

    def _fetch(self, base: S3URI, rank: int | None, load_id: str) -> Metadata:
        asked = time.perf_counter()
        uri = base.join(metadata_name(rank))
        if isinstance(self._client.transport, Prepares):
            self._client.transport.prepare()
        metadata = self._obtain(uri)
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        cast(StorageMeta, metadata.storage_meta).load_id = load_id
        self.stats = LoadStats(metadata_requests=1, metadata_seconds=time.perf_counter() - asked)
        return metadata

    def _obtain(self, uri: S3URI) -> Metadata:
        """The metadata; asked for again where it does not match a checksum."""
        tries = 1
        while True:
            try:
                return load_metadata(self._download(uri), trusted=self._trusted)
            except IntegrityError as error:
                if tries >= MOST_TRIES:
                    where = {"bucket": uri.bucket, "key": uri.key, "attempts": tries}
                    raise error.locate(**where) from error
                tries += 1
                _log.warning("%s is fetched again: %s", uri, error)
                reconnect(self._client.transport)
            except InvalidCheckpointError as error:
                raise error.locate(bucket=uri.bucket, key=uri.key) from error

    def _download(self, uri: S3URI) -> bytes:
        begin = time.perf_counter()
        with self._client.pin(uri.bucket, uri.key).stream() as stream:
            # What this first request took tells what others will cost.
            self.seconds_per_request = time.perf_counter() - begin
            return stream.readall()

    def _explain_absence(self, base: S3URI) -> CheckpointError:
        where: dict[str, Any] = {"bucket": base.bucket, "key": base.key}
        prefix = f"{base.key}/" if base.key else ""
        try:
            pages = self._client.list_objects(base.bucket, prefix, max_keys=10)
            found = next((info for page in pages for info in page.object_info), None)
        except StorageError as error:
            return CheckpointNotFoundError(
                f"there is no {METADATA_NAME} here, and what is here cannot be listed: {error}",
                **where,
            )
        if found is None:
            return CheckpointNotFoundError(
                "there is no checkpoint here; check bucket and path", **where
            )
        return CheckpointIncompleteError(
            f"there is data (such as {found.key!r}) but no {METADATA_NAME}: the save has not "
            "finished, or failed, or the checkpoint lies in a folder further down",
            **where,
        )


class UnreadableMetadata(Metadata):
    """Stands for metadata that could not be read, until the error can be raised.

    torch turns whatever ``read_metadata(rank=...)`` raises into an AssertionError with the
    text of the error. This value gets past it; ``set_up_storage_reader``, or a planner that
    looks into it before, then raises the error itself.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        if name == "state_dict_metadata":
            raise self.error
        raise AttributeError(name)
