"""The ``.metadata`` object: bytes to value and back, without running code from it.

A pickle may name any importable function. Here only the names that torch's own writers
use are known (torch 2.3 to 2.15); everything else is refused.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp

from ._torch import StorageInfo
from .checksums import CRC64
from .collector import CollectorPause
from .exceptions import IntegrityError, InvalidCheckpointError
from .metadata_checks import check_metadata
from .pickles import look_through
from .plan import StoredItem
from .ranges import ItemRange

METADATA_NAME = ".metadata"
# Between the pickle and its CRC64NVME, 8 bytes, most significant first.
_SEAL = b"\ns3dcp-crc64\n"
SEAL_SIZE = len(_SEAL) + CRC64.width
# An attribute beside an item's place, which stock readers ignore: ``ItemChecksums.as_tuple``.
CHECKSUMS = "s3dcp_checksums"

_DCP = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"
_MEM_FORMAT = "MEM_FORMAT_ENCODING"
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"


def metadata_name(rank: int | None = None) -> str:
    """``.metadata``, or ``__{rank}.metadata`` of a save without collectives."""
    return METADATA_NAME if rank is None else f"__{rank}{METADATA_NAME}"


def dump_metadata(metadata: dcp.Metadata) -> bytes:
    """Pickle as torch's writer does, in the form that every version of torch reads."""
    output = io.BytesIO()
    pickler = pickle.Pickler(output)
    pickler.dispatch_table = {
        **copyreg.dispatch_table,
        dcp.TensorProperties: _reduced_properties,
        dcp._MEM_FORMAT_ENCODING: _reduced_member,
    }
    pickler.dump(metadata)
    return sealed(output.getvalue())


def load_metadata(data: bytes, *, trusted: bool = False) -> dcp.Metadata:
    """Decode and check what a ``.metadata`` object holds.

    Args:
        trusted: It may run code, as with plain pickle.

    Raises:
        IntegrityError: It is not what was written.
        InvalidCheckpointError: Damaged, or it names something that may not be loaded.
    """
    end = _check_seal(data)
    try:
        value = _TrustingUnpickler(io.BytesIO(data)).load() if trusted else _load(data, end)
        check_metadata(value)
    except (InvalidCheckpointError, IntegrityError):
        raise
    except Exception as error:
        # A damaged pickle may raise nearly anything.
        raise InvalidCheckpointError(
            f"the checkpoint's metadata is damaged: {type(error).__name__}: {error}"
        ) from error
    metadata: dcp.Metadata = value
    return metadata


def _load(data: bytes, end: int) -> Any:
    look = look_through(data)
    if look.large_numbers:
        raise InvalidCheckpointError("the checkpoint's metadata holds a number of over 8 bytes")
    if look.end != end:
        # Either what seals it was damaged, or the pickle was.
        raise IntegrityError("the checkpoint's metadata does not end where its pickle does")
    with CollectorPause():
        return _Unpickler(io.BytesIO(data)).load()


def sealed(data: bytes) -> bytes:
    """With its checksum. Unpicklers, those of other tools too, stop before it."""
    return b"".join((data, _SEAL, CRC64.of([memoryview(data)]).to_bytes(CRC64.width, "big")))


def _check_seal(data: bytes) -> int:
    """Where the pickle ends; metadata of other tools has no seal and nothing is checked."""
    end = len(data) - SEAL_SIZE
    if end < 0 or data[end : end + len(_SEAL)] != _SEAL:
        return len(data)
    view = memoryview(data)
    if CRC64.of([view[:end]]) != int.from_bytes(view[end + len(_SEAL) :], "big"):
        raise IntegrityError("the checkpoint's metadata does not match its checksum")
    return end


def stored_item(info: Any) -> StoredItem:
    """Where an item lies, from its entry in ``storage_data``."""
    transforms = tuple(getattr(info, "transform_descriptors", None) or ())
    span = ItemRange(info.offset, info.offset + info.length)
    checksums = getattr(info, CHECKSUMS, None)
    return StoredItem(str(info.relative_path), span, transforms, checksums)


def described_items(metadata: dcp.Metadata) -> Iterator[dcp.MetadataIndex]:
    """All items that a checkpoint must store to be what its metadata says."""
    for name, about in metadata.state_dict_metadata.items():
        if isinstance(about, dcp.TensorStorageMetadata):
            for chunk in about.chunks:
                yield dcp.MetadataIndex(name, chunk.offsets)
        else:
            yield dcp.MetadataIndex(name)


def data_paths(metadata: dcp.Metadata) -> frozenset[str]:
    """Relative paths of all data objects that a checkpoint consists of."""
    return frozenset(str(info.relative_path) for info in metadata.storage_data.values())


def _reduced_properties(value: dcp.TensorProperties) -> Any:
    """Leaves out what torch 2.15 adds to the state of TensorProperties: 2.14 fails on it."""
    reduced: Any = value.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    make, args, state, *rest = reduced
    return make, args, tuple(state)[:5], *rest


def _reduced_member(value: Any) -> Any:
    """By value: the first Pythons 3.11 name ``getattr``, which readers refuse."""
    return type(value), (value.value,)


class _TensorProperties(dcp.TensorProperties):
    """Reads the state of torch up to 2.14 (5 values) and of 2.15 (6 values)."""

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(tuple(state)[:5])  # type: ignore[no-untyped-call]
        # From here on it is what torch itself would have made.
        self.__class__ = dcp.TensorProperties  # type: ignore[assignment]


def _path(*parts: str) -> str:
    """Paths in metadata are plain strings here."""
    return str(PurePosixPath(*parts))


def _layout(text: str) -> torch.layout:
    # Not getattr: that imports modules of torch.
    layout = vars(torch).get(str(text).removeprefix("torch."))
    if not isinstance(layout, torch.layout):
        raise InvalidCheckpointError(f"unknown layout {text!r} in the checkpoint's metadata")
    return layout


def _member(kind: Any = None, name: Any = None, *_: Any) -> Any:
    """What the first Pythons 3.11 pickle a member of an enumeration as; no other ``getattr``."""
    real: Any = getattr(kind, "real", None)
    members: dict[str, Any] = {}
    for one in (dcp._MEM_FORMAT_ENCODING, _legacy_sharded_names()[_SHARDED, _MEM_FORMAT]):
        if one is real:
            members = dict(real.__members__)
    if type(name) is not str or name not in members:
        raise InvalidCheckpointError(
            "the checkpoint's metadata names builtins.getattr for something that no checkpoint "
            "needs; it was not loaded, because that could run code from the bucket"
        )
    return members[name]


class _StoragePrefix:
    """Plans of older versions carry one; it means nothing to a load."""


def _legacy_sharded_names() -> dict[tuple[str, str], Any]:
    from torch.distributed._shard.sharded_tensor import metadata as sharded

    return {(_SHARDED, name): getattr(sharded, name) for name in ("TensorProperties", _MEM_FORMAT)}


_ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (_DCP, name): getattr(dcp, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    },
    (_DCP, "TensorProperties"): _TensorProperties,
    (_FILESYSTEM, "_StorageInfo"): StorageInfo,
    (_FILESYSTEM, "_StoragePrefix"): _StoragePrefix,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _layout,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "getattr"): _member,
    # As protocols before 3 call it.
    ("__builtin__", "getattr"): _member,
    **{
        (module, name): _path
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path")
    },
    **_legacy_sharded_names(),
}


def _stand_in(real: Any) -> type:
    """A throw-away class whose instances are those of ``real``.

    A pickle may set attributes on what it is handed; on the real class they would stay.
    """
    bare = isinstance(real, type) and (is_dataclass(real) or real is _StoragePrefix)
    itself = real

    class StandIn:
        real = itself

        def __new__(cls, *args: Any) -> Any:
            return object.__new__(itself) if bare else itself(*args)

    return StandIn


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        allowed: Any = _ALLOWED.get((module, name))
        if allowed is not None:
            return _stand_in(allowed)
        if module == "torch":
            value = vars(torch).get(name)
            if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
                # Nothing can be set on these.
                allowed = value
        if allowed is None:
            raise InvalidCheckpointError(
                f"the checkpoint's metadata names {module}.{name}, which no checkpoint needs; "
                "it was not loaded, because that could run code from the bucket"
            )
        return allowed  # type: ignore[no-any-return]


class _TrustingUnpickler(_Unpickler):
    """Finds whatever a pickle names."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        return pickle.Unpickler.find_class(self, module, name)  # type: ignore[no-any-return]
