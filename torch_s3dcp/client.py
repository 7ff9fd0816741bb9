"""Objects as files: readers over ranged requests, writers over uploads.

The shape of the reference's client, over any transport.
"""

from __future__ import annotations

from collections.abc import Iterator

from .config import S3ClientConfig, check_config
from .object_writer import S3Writer
from .pinned import PinnedObject
from .readers.contract import ReaderConstructor, S3Reader
from .registry import resolve_reader
from .transports import BotoTransport, ListPage, ObjectInfo, Transport
from .transports.retries import Limits

DEFAULT_READER = "sequential"


class S3Client:
    """Reads and writes objects through a transport.

    Args:
        region: Region of the buckets; None: as boto3 finds it.
        endpoint: Server to talk to; short for ``S3ClientConfig(endpoint_url=...)``.
        user_agent: Text that is added to the user agent.
        s3client_config: Settings of the connection.
        transport: Does the requests; by default boto3 with the settings above.
    """

    def __init__(
        self,
        region: str | None = None,
        *,
        endpoint: str | None = None,
        user_agent: str = "",
        s3client_config: S3ClientConfig | None = None,
        transport: Transport | None = None,
    ) -> None:
        config = check_config(s3client_config)
        if endpoint is not None:
            config = config.replace(endpoint_url=endpoint)
        self.region = region
        self.s3client_config = config
        self.transport = transport or BotoTransport(region, config, user_agent)

    def get_object(
        self,
        bucket: str,
        key: str,
        *,
        object_info: ObjectInfo | None = None,
        reader_constructor: ReaderConstructor | str | None = None,
    ) -> S3Reader:
        """A reader over one object. No request is made before the reader needs one.

        All requests of the reader see one version of the object: when it is replaced in
        between, reading raises :class:`ObjectChangedError`.

        Args:
            object_info: What is known of the object already; saves the HEAD request.
            reader_constructor: Constructor or registered name; default: sequential.
        """
        constructor = resolve_reader(reader_constructor, DEFAULT_READER)
        source = self.pin(bucket, key, object_info)
        return constructor(bucket, key, source.info, source.stream)

    def pin(self, bucket: str, key: str, object_info: ObjectInfo | None = None) -> PinnedObject:
        """Access to one version of an object: the one that the first request finds."""
        config = self.s3client_config
        limits = Limits(config.max_attempts, config.give_up_after, config.pause_factor)
        return PinnedObject(self.transport, bucket, key, object_info, limits)

    def put_object(self, bucket: str, key: str, storage_class: str | None = None) -> S3Writer:
        """A file to write an object through; the object appears when it is closed."""
        return S3Writer(self.transport, bucket, key, storage_class)

    def head_object(self, bucket: str, key: str) -> ObjectInfo:
        """Size and ETag of an object."""
        return self.transport.head(bucket, key)

    def delete_object(self, bucket: str, key: str) -> None:
        """Remove an object; one that does not exist is no error."""
        self.transport.delete(bucket, [key])

    def copy_object(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str) -> None:
        """Copy an object on the server."""
        self.transport.copy(src_bucket, src_key, dst_bucket, dst_key)

    def list_objects(
        self, bucket: str, prefix: str = "", delimiter: str = "", max_keys: int = 1000
    ) -> Iterator[ListPage]:
        """Pages of objects; ``max_keys`` is the size of a page."""
        return self.transport.list(bucket, prefix, delimiter=delimiter, page_size=max_keys)
