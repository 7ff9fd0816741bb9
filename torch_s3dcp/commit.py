"""The commit: one conditional PUT of the metadata, and what to do when its answer is lost."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from .checkpoint_metadata import METADATA_NAME, data_paths, dump_metadata, load_metadata
from .collector import CollectorPause
from .exceptions import (
    AccessDeniedError,
    BucketNotFoundError,
    CommitConflictError,
    CommitUnknownError,
    CredentialsError,
    ObjectNotFoundError,
    PreconditionFailedError,
    S3DCPError,
    StorageError,
    WrongRegionError,
)
from .transports import Transport
from .uri import S3URI

_log = logging.getLogger(__name__)

# Stored with the metadata object, so that a commit can recognise itself.
COMMIT_ID = "torch-s3dcp-commit"


# Tries of the commit itself, each with all the retries of the transport, and the pause in
# seconds by which the next one waits longer.
_ATTEMPTS = 3
_PAUSE = 0.2

# Answers that say for certain that nothing was stored.
_REFUSALS = (
    AccessDeniedError,
    BucketNotFoundError,
    CredentialsError,
    PreconditionFailedError,
    WrongRegionError,
)


class _Found(Enum):
    """Whose metadata is there."""

    OURS = "ours"
    BEFORE = "what was there when the save began"
    ANOTHER = "somebody else's"
    UNKNOWN = "unknown"


def _refused(error: StorageError) -> bool:
    """Whether the server certainly did nothing, not even for an earlier try of the request."""
    return isinstance(error, _REFUSALS) and (error.attempts or 1) == 1


@dataclass(frozen=True)
class Commit:
    """A commit to come, bound to what was found when the save began.

    ``replaces`` is the ETag of the metadata that it will replace, None where there is none.
    """

    transport: Transport
    base: S3URI
    name: str
    replaces: str | None

    def land(self, metadata: Metadata) -> list[str]:
        """Put the metadata, then remove what the replaced checkpoint consisted of.

        Returns:
            What could not be removed, in words; empty when all went well.

        Raises:
            CommitConflictError: The metadata is no longer what it was when the save began.
            CommitUnknownError: It may or may not have landed, or may land yet; nothing is
                removed then. Any exception that is not this package's becomes one of these.
            StorageError: The server refused it; what this save uploaded is removed.
        """
        new = data_paths(metadata)
        try:
            # All that is made here is gone again before the collector goes on: otherwise it
            # looks at all of it, 40 ms for 10,000 items, in which no other thread runs.
            with CollectorPause():
                data = dump_metadata(metadata)
                # What is saved must be loadable without running code from it.
                load_metadata(data)
            obsolete, unreadable = self._owned_before()
        except BaseException:
            self._abandon(new)
            raise
        try:
            self._put(data)
        except CommitUnknownError:
            raise
        except S3DCPError:
            self._abandon(new)
            raise
        except Exception as error:
            # Such as a lack of memory: the request may have been sent.
            raise self._unknown(error) from error
        # So does an interrupt leave open whether the commit landed; it is raised as it is.
        return unreadable + self._remove(obsolete - new)

    def give_up(self, results: Iterable[Iterable[WriteResult]]) -> None:
        """Remove what the save uploaded; there will be no commit."""
        self._abandon(
            frozenset(r.storage_data.relative_path for of_rank in results for r in of_rank)
        )

    def _abandon(self, paths: frozenset[str]) -> None:
        for failure in self._remove(paths):
            _log.error("objects of a failed save stay behind at %s: %s", self.base, failure)

    def _owned_before(self) -> tuple[frozenset[str], list[str]]:
        """Data paths of the checkpoint that will be replaced."""
        if self.replaces is None:
            return frozenset(), []
        uri = self.base.join(self.name)
        try:
            with self.transport.get(uri.bucket, uri.key, if_match=self.replaces) as body:
                owned = data_paths(load_metadata(body.readall()))
        except S3DCPError as error:
            # Whether to go on is decided by the conditional PUT, not here.
            return frozenset(), [f"what it owned is not known: {error}"]
        # A damaged checkpoint may call a metadata object its data: that would be the new one.
        return frozenset(path for path in owned if not path.endswith(METADATA_NAME)), []

    def _put(self, data: bytes) -> None:
        """Put the metadata until the server's answer leaves no doubt."""
        mark, doubt = uuid.uuid4().hex, False
        for attempt in range(_ATTEMPTS):
            time.sleep(_PAUSE * attempt)
            try:
                self._put_once(data, mark)
                return
            except StorageError as error:
                # A request may land although its answer was lost, even long afterwards; a
                # second one then meets what the first one wrote.
                found = self._found(mark, data)
                if found is _Found.OURS:
                    return
                doubt = doubt or not _refused(error)
                precondition = isinstance(error, PreconditionFailedError)
                if precondition and found is _Found.ANOTHER:
                    raise self._conflict() from error
                if not doubt and not precondition:
                    raise
                failure = error
        raise (self._unknown(failure) if doubt else self._conflict()) from failure

    def _put_once(self, data: bytes, mark: str) -> None:
        uri = self.base.join(self.name)
        self.transport.put(
            uri.bucket,
            uri.key,
            data,
            if_match=self.replaces,
            if_none_match=self.replaces is None,
            metadata={COMMIT_ID: mark},
        )

    def _found(self, mark: str, data: bytes) -> _Found:
        """What is committed now."""
        uri = self.base.join(self.name)
        try:
            found = self.transport.head(uri.bucket, uri.key)
            if self.replaces is not None and found.etag == self.replaces:
                return _Found.BEFORE
            if COMMIT_ID in found.metadata:
                return _Found.OURS if found.metadata[COMMIT_ID] == mark else _Found.ANOTHER
            # Another tool's commit, or a server that keeps no metadata with objects.
            with self.transport.get(uri.bucket, uri.key, if_match=found.etag) as body:
                return _Found.OURS if body.readall() == data else _Found.ANOTHER
        except ObjectNotFoundError:
            return _Found.BEFORE if self.replaces is None else _Found.ANOTHER
        except StorageError:
            return _Found.UNKNOWN

    def _conflict(self) -> CommitConflictError:
        uri = self.base.join(self.name)
        return CommitConflictError(
            "another save committed here since this one began; its checkpoint is untouched, "
            "this one was given up",
            bucket=uri.bucket,
            key=uri.key,
        )

    def _unknown(self, failure: Exception) -> CommitUnknownError:
        uri = self.base.join(self.name)
        what = str(failure) if isinstance(failure, S3DCPError) else repr(failure)
        return CommitUnknownError(
            f"it is not known whether the commit landed: {what}; load the checkpoint to find "
            "out, nothing was removed",
            bucket=uri.bucket,
            key=uri.key,
        )

    def _remove(self, paths: frozenset[str]) -> list[str]:
        keys = sorted(self.base.join(path).key for path in paths)
        if not keys:
            return []
        try:
            self.transport.delete(self.base.bucket, keys)
        except S3DCPError as error:
            return [str(error)]
        except Exception as error:  # noqa: BLE001 - told; what was decided before stays so
            return [repr(error)]
        return []


def begin_commit(transport: Transport, base: S3URI, name: str) -> Commit:
    """Note what is committed under ``name`` now, so that nothing else gets replaced."""
    uri = base.join(name)
    try:
        found = transport.head(uri.bucket, uri.key)
    except ObjectNotFoundError:
        return Commit(transport, base, name, None)
    return Commit(transport, base, name, found.etag)
