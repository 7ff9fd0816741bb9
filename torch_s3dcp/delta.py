"""What of a file an earlier checkpoint holds already: told by checksums, copied by the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem

from ._torch import StreamTransformExtension
from .checkpoint_metadata import CHECKSUMS, load_metadata
from .chunk_checksums import ItemChecksums, parse_checksums
from .exceptions import ObjectNotFoundError, S3DCPError
from .file_stream import Cancelled, WrittenItem
from .items import descriptors_of, serialize
from .reuse import Piece, Reusable, Run, parts_of_copy, plan_runs
from .transports import CopiedRange, ObjectInfo, Transport
from .uri import S3URI

Resolve = Callable[[WriteItem], torch.Tensor | BytesIO]


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
    """

    def __init__(
        self, transport: Transport, base: S3URI, storage_data: Mapping[MetadataIndex, Any]
    ) -> None:
        self._transport = transport
        self._base = base
        self._storage_data = storage_data
        self._matching: dict[MetadataIndex, ItemChecksums] = {}
        self._objects: dict[str, ObjectInfo | None] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, transport: Transport, base: S3URI, name: str) -> Earlier:
        """Read its metadata, of that name.

        Raises:
            S3DCPError: There is none, or it is damaged.
        """
        uri = base.join(name)
        with transport.get(uri.bucket, uri.key) as body:
            metadata = load_metadata(body.readall())
        return cls(transport, base, metadata.storage_data)

    def plan_file(
        self,
        items: Sequence[WriteItem],
        resolve: Resolve,
        extensions: Sequence[StreamTransformExtension],
        stop: threading.Event,
    ) -> PlannedFile:
        """What of a file is there already. Looks at all bytes of items that may be."""
        found: list[Reusable[WriteItem]] = []
        for item in items:
            if stop.is_set():
                raise Cancelled
            info = self._storage_data.get(item.index)
            if info is not None and self._is_stored(info, item, resolve, extensions):
                path, start = str(info.relative_path), info.offset
                found.append(Reusable(item, path, start, start + info.length))
        runs = [run for run in plan_runs(found) if self._is_there(run.path)]
        taken = {id(one.item) for run in runs for one in run.items}
        return PlannedFile(
            tuple(piece for run in runs for piece in self._copied(run)),
            tuple(self._written(runs)),
            tuple(item for item in items if id(item) not in taken),
        )

    def _is_stored(
        self,
        info: Any,
        item: WriteItem,
        resolve: Resolve,
        extensions: Sequence[StreamTransformExtension],
    ) -> bool:
        checksums = parse_checksums(getattr(info, CHECKSUMS, None), info.length)
        transforms = getattr(info, "transform_descriptors", None) or None
        if checksums is None or not info.length or transforms != descriptors_of(extensions):
            return False
        try:
            blocks = serialize(resolve(item), extensions)
        except S3DCPError as error:
            raise error.locate(tensor=item.index.fqn) from error
        if sum(map(len, blocks)) != info.length or not checksums.match(blocks):
            return False
        self._matching[item.index] = checksums
        return True

    def _is_there(self, path: str) -> bool:
        """Whether an object still is there, seen by the first who asks."""
        uri = self._base.join(path)
        # Held while asking: whoever waits mostly needs the same answer.
        with self._lock:
            if path not in self._objects:
                try:
                    self._objects[path] = self._transport.head(uri.bucket, uri.key)
                except ObjectNotFoundError:
                    self._objects[path] = None
            return self._objects[path] is not None

    def _copied(self, run: Run[WriteItem]) -> Iterable[CopiedRange]:
        """A run as parts of a copy, bound to the version of the object that is there now."""
        uri, info = self._base.join(run.path), self._objects[run.path]
        etag = info.etag if info else None
        pieces = (
            Piece(one.start + start, one.start + end, checksum)
            for one in run.items
            for start, end, checksum in self._matching[one.item.index].pieces(one.end - one.start)
        )
        for part in parts_of_copy(pieces):
            yield CopiedRange(uri.bucket, uri.key, part.start, part.end, etag, part.checksum)

    def _written(self, runs: Iterable[Run[WriteItem]]) -> Iterable[WrittenItem]:
        offset = 0
        for one in (one for run in runs for one in run.items):
            length = one.end - one.start
            yield WrittenItem(one.item.index, offset, length, self._matching[one.item.index])
            offset += length
