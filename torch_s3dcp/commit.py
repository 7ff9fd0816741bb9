"""The commit: one conditional PUT of the metadata, and what to do when its answer is lost."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from torch.distributed.checkpoint.metadata import Metadata

from .checkpoint_metadata import METADATA_NAME, data_paths, dump_metadata, load_metadata
from .exceptions import (
    CommitConflictError,
    CommitUnknownError,
    ObjectNotFoundError,
    PreconditionFailedError,
    S3DCPError,
    StorageError,
)
from .transports import Transport
from .uri import S3URI

# Stored with the metadata object, so that a commit can recognise itself.
COMMIT_ID = "torch-s3dcp-commit"


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
            CommitUnknownError: It cannot be found out whether the commit landed.
            StorageError: It did not land.
        """
        new = data_paths(metadata)
        try:
            obsolete, unreadable = self._owned_before()
            self._put(dump_metadata(metadata))
        except CommitUnknownError:
            raise
        except S3DCPError:
            self._remove(new)
            raise
        return unreadable + self._remove(obsolete - new)

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
        uri, mark = self.base.join(self.name), uuid.uuid4().hex
        try:
            self.transport.put(
                uri.bucket,
                uri.key,
                data,
                if_match=self.replaces,
                if_none_match=self.replaces is None,
                metadata={COMMIT_ID: mark},
            )
        except StorageError as error:
            # The request may have landed although its answer was lost; a retry of the client
            # library then fails against what this very commit wrote.
            if not self._landed(mark, error):
                self._raise_failure(error)

    def _landed(self, mark: str, error: StorageError) -> bool:
        uri = self.base.join(self.name)
        try:
            found = self.transport.head(uri.bucket, uri.key)
        except ObjectNotFoundError:
            return False
        except StorageError as again:
            raise CommitUnknownError(
                f"it is not known whether the commit landed: {error}; asking failed too: {again}; "
                "load the checkpoint to find out, nothing was removed",
                bucket=uri.bucket,
                key=uri.key,
            ) from error
        return found.metadata.get(COMMIT_ID) == mark

    def _raise_failure(self, error: StorageError) -> None:
        uri = self.base.join(self.name)
        if isinstance(error, PreconditionFailedError):
            raise CommitConflictError(
                "another save committed here since this one began; its checkpoint is untouched, "
                "this one was given up",
                bucket=uri.bucket,
                key=uri.key,
            ) from error
        raise error

    def _remove(self, paths: frozenset[str]) -> list[str]:
        keys = sorted(self.base.join(path).key for path in paths)
        if not keys:
            return []
        try:
            self.transport.delete(self.base.bucket, keys)
        except S3DCPError as error:
            return [str(error)]
        return []


def begin_commit(transport: Transport, base: S3URI, name: str) -> Commit:
    """Note what is committed under ``name`` now, so that nothing else gets replaced."""
    uri = base.join(name)
    try:
        found = transport.head(uri.bucket, uri.key)
    except ObjectNotFoundError:
        return Commit(transport, base, name, None)
    return Commit(transport, base, name, found.etag)
