"""What of a file an earlier checkpoint holds already: told by checksums, copied by the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem

from .checkpoint_metadata import CHECKSUMS, load_metadata
from .chunk_checksums import ItemChecksums, parse_checksums
from .exceptions import StorageError
from .file_stream import FileStream, WrittenItem
from .reuse import Piece, Reusable, Run, parts_of_copy, plan_runs
from .transports import CopiedRange, ObjectInfo, Transport
from .uri import S3URI

_log = logging.getLogger(__name__)

OpenStream = Callable[[Sequence[WriteItem]], FileStream]
_Found = tuple[WriteItem, WrittenItem]

# Bytes that are looked at in one go.
_STEP = 32 * 1024 * 1024


@dataclass(frozen=True)
class PlannedFile:
    """A file of a save: ranges to copy, then items to upload.

    ``taken`` are the items in the ranges, where they will lie.
    """

    copied: tuple[CopiedRange, ...]
    taken: tuple[WrittenItem, ...]
    rest: tuple[WriteItem, ...]

    @property
    def copied_bytes(self) -> int:
        """Bytes of the ranges."""
        return sum(map(len, self.copied))


class Earlier:
    """A checkpoint whose bytes may be used again. Used by several threads.

    Args:
        transport: Does the requests.
        base: Address of the checkpoint.
        storage_data: Where its items lie.
        descriptors: Transformations that this save's bytes go through.
    """

    def __init__(
        self,
        transport: Transport,
        base: S3URI,
        storage_data: Mapping[MetadataIndex, Any],
        descriptors: list[str] | None,
    ) -> None:
        self._transport = transport
        self._base = base
        self._storage_data = storage_data
        self._descriptors = descriptors
        self._objects: dict[str, ObjectInfo | None] = {}

    @classmethod
    def load(
        cls, transport: Transport, base: S3URI, name: str, descriptors: list[str] | None
    ) -> Earlier:
        """Read its metadata, of that name.

        Raises:
            S3DCPError: There is none, or it is damaged.
        """
        uri = base.join(name)
        with transport.get(uri.bucket, uri.key) as body:
            metadata = load_metadata(body.readall())
        return cls(transport, base, metadata.storage_data, descriptors)

    def plan_file(self, items: Sequence[WriteItem], open_stream: OpenStream) -> PlannedFile:
        """What of a file is there already. Looks at all bytes of items that may be.

        ``open_stream`` gives the stream of a file with some of the items.
        """
        known = [item for item in items if self._stored(item.index) is not None]
        found = []
        for item, written in zip(known, _looked_through(open_stream(known)), strict=True):
            info = self._storage_data[item.index]
            if (written.length, written.checksums) == (info.length, self._stored(item.index)):
                path, start = str(info.relative_path), info.offset
                found.append(Reusable((item, written), path, start, start + info.length))
        runs = [run for run in plan_runs(found) if self._is_there(run.path)]
        taken = [one for run in runs for one in run.items]
        ids = {id(one.item[0]) for one in taken}
        return PlannedFile(
            tuple(piece for run in runs for piece in self._copied(run)),
            tuple(_behind_one_another(one.item[1] for one in taken)),
            tuple(item for item in items if id(item) not in ids),
        )

    def _stored(self, index: MetadataIndex) -> ItemChecksums | None:
        """The checksums of an item with any bytes, stored as this save would store it."""
        info = self._storage_data.get(index)
        if info is None or not info.length:
            return None
        transforms = getattr(info, "transform_descriptors", None) or None
        if transforms != self._descriptors:
            return None
        return parse_checksums(getattr(info, CHECKSUMS, None), info.length)

    def _is_there(self, path: str) -> bool:
        """Whether an object still is there, seen by the first who asks."""
        uri = self._base.join(path)
        if path not in self._objects:
            found: ObjectInfo | None = None
            try:
                found = self._transport.head(uri.bucket, uri.key)
            except StorageError as error:
                _log.warning("%s is not used again: %s", uri, error)
            # Where two threads asked, both go by the answer that came first.
            self._objects.setdefault(path, found)
        return self._objects[path] is not None

    def _copied(self, run: Run[_Found]) -> Iterable[CopiedRange]:
        """A run as parts of a copy, bound to the version of the object that is there now."""
        uri, info = self._base.join(run.path), self._objects[run.path]
        etag = info.etag if info else None
        pieces = (
            Piece(one.start + start, one.start + end, checksum)
            for one in run.items
            for start, end, checksum in _pieces_of(one.item[1])
        )
        for part in parts_of_copy(pieces):
            yield CopiedRange(uri.bucket, uri.key, part.start, part.end, etag, part.checksum)


def _looked_through(stream: FileStream) -> list[WrittenItem]:
    """The items of a stream that goes nowhere."""
    try:
        start = 0
        while blocks := stream.take(_STEP):
            size = sum(map(len, blocks))
            stream.checksum(start, blocks)
            stream.release(start, size)
            start += size
            del blocks
        return stream.written()
    finally:
        stream.close()


def _pieces_of(item: WrittenItem) -> Iterable[tuple[int, int, int]]:
    return item.checksums.pieces(item.length) if item.checksums is not None else ()


def _behind_one_another(items: Iterable[WrittenItem]) -> Iterable[WrittenItem]:
    """Where items lie that make up the beginning of a file."""
    offset = 0
    for item in items:
        yield replace(item, offset=offset)
        offset += item.length
