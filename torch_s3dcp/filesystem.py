"""S3 behind torch's ``FileSystemBase``, for code that works with streams and paths."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.checkpoint.filesystem import FileSystemBase

from ._torch import agent_for
from .client import S3Client
from .config import S3ClientConfig
from .exceptions import ConfigurationError, ObjectNotFoundError
from .readers.contract import ReaderConstructor
from .registry import resolve_reader
from .uri import is_uri, parse_uri

DEFAULT_READER = "sequential"


class S3FileSystem(FileSystemBase):
    """Streams, copies and listings under ``s3://`` paths.

    Args:
        region: Region of the buckets; None: as boto3 finds it.
        s3_client: A client of this package to use as it is.
        s3client_config: Settings of the connection.
        reader_constructor: Constructor or registered name for reading streams.
    """

    def __init__(
        self,
        region: str | None = None,
        s3_client: S3Client | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: ReaderConstructor | str | None = None,
    ) -> None:
        self.reader_constructor = resolve_reader(reader_constructor, DEFAULT_READER)
        self.client = s3_client or S3Client(
            region,
            s3client_config=s3client_config,
            user_agent=agent_for(self.reader_constructor),
        )

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """Open an object. Written ones appear on leaving, and not at all after an exception.

        Raises:
            ConfigurationError: ``mode`` is neither ``"rb"`` nor ``"wb"`` (a ValueError).
        """
        uri = parse_uri(path)
        if mode == "rb":
            with self.client.get_object(
                uri.bucket, uri.key, reader_constructor=self.reader_constructor
            ) as reader:
                yield reader
        elif mode == "wb":
            with self.client.put_object(uri.bucket, uri.key) as writer:
                yield writer
        else:
            raise ConfigurationError(f"mode must be 'rb' or 'wb', got {mode!r}")

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        """The path of ``suffix`` below ``path``."""
        return str(parse_uri(path).join(suffix))

    def init_path(self, path: str | os.PathLike[str]) -> str:
        """The path in its usual form.

        Raises:
            InvalidURIError: It is not an S3 location.
        """
        return str(parse_uri(path))

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Copy, then delete. S3 cannot rename: for a moment both exist.

        Raises:
            ConfigurationError: The buckets differ (a ValueError).
        """
        old, new = parse_uri(path), parse_uri(new_path)
        if old.bucket != new.bucket:
            raise ConfigurationError(f"cannot rename between buckets: {old} to {new}")
        if old == new:
            self.client.head_object(old.bucket, old.key)
            return
        self.client.copy_object(old.bucket, old.key, new.bucket, new.key)
        self.client.delete_object(old.bucket, old.key)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Nothing: S3 has no folders. The path is checked."""
        parse_uri(path)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is such an object. Any other answer than yes or no raises."""
        uri = parse_uri(path)
        try:
            self.client.head_object(uri.bucket, uri.key)
        except ObjectNotFoundError:
            return False
        return True

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Delete an object; one that does not exist is no error, a failure is."""
        uri = parse_uri(path)
        self.client.delete_object(uri.bucket, uri.key)

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        """Full paths of the objects and folders directly below ``path``."""
        uri = parse_uri(path)
        prefix = f"{uri.key}/" if uri.key else ""
        found: list[str] = []
        for page in self.client.list_objects(uri.bucket, prefix, "/"):
            # The object that some tools make to show an empty folder is the folder itself.
            keys = [info.key for info in page.object_info if info.key != prefix]
            found += [f"s3://{uri.bucket}/{key}" for key in keys]
            found += [f"s3://{uri.bucket}/{name}" for name in page.common_prefixes]
        return sorted(found)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is an S3 location."""
        return is_uri(checkpoint_id)
