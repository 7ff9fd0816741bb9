"""What the ranks of a save have written, put together and checked before the commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

from ._torch import StorageInfo
from .checkpoint_metadata import CHECKSUMS, described_items
from .exceptions import ConfigurationError, InvalidCheckpointError
from .file_stream import WrittenItem
from .uri import S3URI

# Travels with each result to the coordinator, which takes it off again.
_NOTE = "s3dcp_file"


@dataclass(frozen=True)
class FileNote:
    """What a rank tells the coordinator of an object: where it saved to, the size in bytes."""

    address: str
    size: int


def results_of(
    path: str, items: Iterable[WrittenItem], note: FileNote, descriptors: list[str] | None
) -> list[WriteResult]:
    """Where the items of an object lie, as DCP hands it to the coordinator."""
    results = []
    for item in items:
        place = StorageInfo(path, item.offset, item.length, descriptors)
        setattr(place, _NOTE, note)
        if item.checksums is not None:
            setattr(place, CHECKSUMS, item.checksums.as_tuple())
        results.append(WriteResult(item.index, item.length, place))
    return results


def storage_data_of(
    results: Iterable[Iterable[WriteResult]], metadata: Metadata, base: S3URI
) -> dict[MetadataIndex, Any]:
    """Where all items lie, for the metadata.

    Raises:
        ConfigurationError: The ranks saved to different places.
        InvalidCheckpointError: Two ranks wrote one item, or none did, or an object's size is not
            that of its items.
    """
    storage_data: dict[MetadataIndex, Any] = {}
    sizes: dict[str, int] = {}
    for result in (result for of_rank in results for result in of_rank):
        if result.index in storage_data:
            raise InvalidCheckpointError(
                "the item was written twice, by one rank or by two", tensor=result.index.fqn
            )
        storage_data[result.index] = place = result.storage_data
        note: FileNote | None = place.__dict__.pop(_NOTE, None)
        if note is None:
            continue
        if note.address != str(base):
            raise ConfigurationError(
                f"the ranks saved to different places, {base} and {note.address}; give all "
                "ranks the same path or checkpoint_id",
                tensor=result.index.fqn,
            )
        sizes[place.relative_path] = note.size
    missing = next((i for i in described_items(metadata) if i not in storage_data), None)
    if missing is not None:
        raise InvalidCheckpointError(
            "no rank wrote this item, though the plan of the save lists it", tensor=missing.fqn
        )
    _check_files(storage_data, sizes, base)
    return storage_data


def _check_files(
    storage_data: Mapping[MetadataIndex, Any], sizes: Mapping[str, int], base: S3URI
) -> None:
    """Each object must consist of its items, one behind the other."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for place in storage_data.values():
        spans.setdefault(place.relative_path, []).append((place.offset, place.length))
    for path, size in sizes.items():
        if not _tiles(spans[path], size):
            raise InvalidCheckpointError(
                f"the items of this object do not make up its {size} bytes; save again",
                bucket=base.bucket,
                key=base.join(path).key,
            )


def _tiles(spans: Sequence[tuple[int, int]], size: int) -> bool:
    """Whether spans, each an offset and a length, fill ``[0, size)`` without overlap."""
    place = 0
    for offset, length in sorted(spans):
        if offset != place:
            return False
        place += length
    return place == size
