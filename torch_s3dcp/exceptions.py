"""The errors of the package. A wrong type of argument raises a plain TypeError.

::

    S3DCPError
    ├── ConfigurationError (ValueError)         what the caller passed cannot work
    │   ├── InvalidURIError                     not an ``s3://bucket/key`` address
    │   └── ReaderRegistryError                 a reader is unknown, clashes or is broken
    ├── StorageError                            a request to the object store failed
    │   ├── BucketNotFoundError (FileNotFoundError)
    │   ├── ObjectNotFoundError (FileNotFoundError)
    │   ├── AccessDeniedError (PermissionError)
    │   ├── CredentialsError (PermissionError)
    │   ├── WrongRegionError
    │   ├── PreconditionFailedError             a condition on a write did not hold
    │   ├── ObjectChangedError                  replaced while it was being read
    │   ├── TruncatedObjectError (EOFError)     fewer bytes than the checkpoint says
    │   ├── WrongRangeError                     the server sent other bytes than asked for
    │   ├── IntegrityError                      the bytes do not match their checksum
    │   ├── ThrottledError                      still told to slow down after all retries
    │   ├── EndpointError (ConnectionError)     unreachable, or the connection broke
    │   └── DeadlineError (TimeoutError)        too little progress for too long
    └── CheckpointError                         the checkpoint as a whole is the problem
        ├── CheckpointNotFoundError (FileNotFoundError)
        ├── CheckpointIncompleteError (FileNotFoundError)
        ├── CheckpointExistsError (FileExistsError)
        ├── CommitConflictError                 somebody else committed to this place
        ├── CommitUnknownError                  the commit may or may not have landed
        ├── InvalidCheckpointError (ValueError) metadata or an item cannot be decoded
        └── SizeMismatchError (ValueError)      stored and wanted shape differ

All of them survive pickling with message and context, because DCP sends the error
of one rank to all others by pickle. None ever holds a credential.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

_ErrorT = TypeVar("_ErrorT", bound="S3DCPError")


def _restore(cls: type[_ErrorT], message: str, context: dict[str, Any]) -> _ErrorT:
    return cls(message, **context)


class S3DCPError(Exception):
    """Base of all errors of the package.

    Args:
        message: What went wrong and what to do about it.
        bucket: Name of the bucket concerned.
        key: Key of the object concerned.
        byte_range: ``(start, end)`` in bytes of the object, end exclusive.
        tensor: Fully qualified name of the tensor or item that was being moved.
        operation: S3 operation, such as ``GetObject``.
        request_id: The request id that the server gave, for its operators.
        attempts: How many times the request was tried.
    """

    def __init__(
        self,
        message: str,
        *,
        bucket: str | None = None,
        key: str | None = None,
        byte_range: tuple[int, int] | None = None,
        tensor: str | None = None,
        operation: str | None = None,
        request_id: str | None = None,
        attempts: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.bucket = bucket
        self.key = key
        self.byte_range = byte_range
        self.tensor = tensor
        self.operation = operation
        self.request_id = request_id
        self.attempts = attempts

    @property
    def context(self) -> dict[str, Any]:
        """What is known about where it happened: the constructor's keywords, without Nones."""
        fields = {
            "bucket": self.bucket,
            "key": self.key,
            "byte_range": self.byte_range,
            "tensor": self.tensor,
            "operation": self.operation,
            "request_id": self.request_id,
            "attempts": self.attempts,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def locate(self, **context: Any) -> S3DCPError:
        """Return the same error with more context; what it already knew stays."""
        return type(self)(self.message, **{**context, **self.context})

    def __str__(self) -> str:
        where = []
        if self.bucket is not None:
            where.append(f"s3://{self.bucket}/{self.key or ''}")
        if self.byte_range is not None:
            where.append(f"bytes [{self.byte_range[0]}, {self.byte_range[1]})")
        if self.tensor is not None:
            where.append(f"item {self.tensor!r}")
        if self.operation is not None:
            where.append(self.operation)
        if self.attempts is not None:
            where.append(f"{self.attempts} attempt{'s' if self.attempts != 1 else ''}")
        if self.request_id is not None:
            where.append(f"request id {self.request_id}")
        return f"{self.message} ({', '.join(where)})" if where else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.message, self.context)


class ConfigurationError(S3DCPError, ValueError):
    """An argument or setting cannot work; the message says which and what to pass."""


class InvalidURIError(ConfigurationError):
    """The address is not of the form ``s3://bucket/key``."""


class ReaderRegistryError(ConfigurationError):
    """A reader name is unknown or taken, or a plug-in could not be loaded."""


class StorageError(S3DCPError):
    """A request to the object store failed and retrying did not help."""


class BucketNotFoundError(StorageError, FileNotFoundError):
    """The bucket does not exist."""


class ObjectNotFoundError(StorageError, FileNotFoundError):
    """The object does not exist."""


class AccessDeniedError(StorageError, PermissionError):
    """The credentials in use may not do this."""


class CredentialsError(StorageError, PermissionError):
    """No credentials were found, or the server does not accept them."""


class WrongRegionError(StorageError):
    """The bucket lives in another region than the one that was asked."""


class PreconditionFailedError(StorageError):
    """A conditional write was refused: the object is not in the state it should be in."""


class ObjectChangedError(StorageError):
    """The object was replaced while it was being read."""


class TruncatedObjectError(StorageError, EOFError):
    """The object or a response body holds fewer bytes than it should."""


class WrongRangeError(StorageError):
    """The server answered with another byte range than it was asked for."""


class IntegrityError(StorageError):
    """The bytes that arrived do not match their checksum."""


class ThrottledError(StorageError):
    """The server still said "slow down" after all retries."""


class EndpointError(StorageError, ConnectionError):
    """The endpoint cannot be reached, or the connection broke and stayed broken."""


class DeadlineError(StorageError, TimeoutError):
    """All tries together made too little progress in the time that a request may take."""


class CheckpointError(S3DCPError):
    """Something is wrong with the checkpoint as a whole."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is nothing at the checkpoint's address."""


class CheckpointIncompleteError(CheckpointError, FileNotFoundError):
    """There is data, but no ``.metadata``: the save never finished."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """There is a checkpoint already and it must not be replaced."""


class CommitConflictError(CheckpointError):
    """Another save committed to the same address first; nothing of it was touched."""


class CommitUnknownError(CheckpointError):
    """Whether the commit landed could not be found out; nothing was cleaned up."""


class InvalidCheckpointError(CheckpointError, ValueError):
    """The metadata or a stored item is damaged, or not of a kind that may be loaded."""


class SizeMismatchError(CheckpointError, ValueError):
    """The stored data does not have the shape that the load asked for."""


def with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, all that it came of and all that was handled then; each once."""
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, one.__context__]
