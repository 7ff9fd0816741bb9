"""Where a tensor's raw bytes lie inside a ``torch.save`` archive. Pure: no I/O, no torch.

An archive is an uncompressed zip whose records are aligned to 64 bytes. Its layout follows
from two numbers that the checkpoint's metadata knows, the archive's length and the tensor's
size, so it can be predicted before a byte is fetched. What arrives is then checked against
the prediction; any surprise raises :class:`LayoutError` and the item goes to ``torch.load``.

Facts: read off archives of torch 2.3 to 2.13; older ones are recognised too
(``docs/design/format-and-commit.md``).
"""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .pickles import check_sizes

ALIGNMENT = 64
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ZIP64_LIMIT = 2**32 - 1
_LOCAL, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"

# Records before and after the tensor's data, as (length of the name, size), by torch version.
_BEFORE = (
    ((23, 1), (26, 2), (17, 6)),  # 2.7 and later: .format_version, .storage_alignment, byteorder
    ((17, 6),),  # 2.1 to 2.6: byteorder
    (),  # older
)
_DATA_PICKLE, _DATA = "archive/data.pkl", "archive/data/0"
_AFTER = (((15, 2), (30, 40)), ((15, 2),))  # version, .data/serialization_id; version alone


class LayoutError(ValueError):
    """The archive is not laid out as predicted, or holds more than a plain tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """A plain strided tensor inside an archive, as ``data.pkl`` describes it.

    ``dtype`` is torch's name without the module, such as ``"bfloat16"``. ``strides`` and
    ``storage_offset`` count elements, ``data_offset`` bytes from the start of the archive.
    """

    dtype: str
    numel: int
    storage_offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    data_offset: int

    @property
    def contiguous(self) -> bool:
        """Whether the data is the elements in row-major order and nothing else."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return self.storage_offset == 0 and self.numel == expected


@lru_cache(maxsize=65_536)
def predict_data_offset(length: int, nbytes: int) -> int | None:
    """Offset in bytes of the raw data in an archive of ``length`` bytes with ``nbytes`` of data.

    None where no known layout has that length; the archive then has to be looked at.
    """
    if nbytes <= 0 or nbytes >= length:
        return None
    for before in _BEFORE:
        # The pickle's own size only matters in steps of the alignment.
        for pickle_size in range(183, 183 + 6 * ALIGNMENT, ALIGNMENT):
            start, after = _data_start(pickle_size, before, nbytes)
            if after > length:
                break
            if any(_total(after, records, before, nbytes) == length for records in _AFTER):
                return start
    return None


def _place(cursor: int, name_length: int, size: int) -> tuple[int, int]:
    """Where a record's data begins when its header is at ``cursor``, and where it ends."""
    header = _LOCAL_HEADER.size + name_length + 4
    large, far = size >= _ZIP64_LIMIT, cursor >= _ZIP64_LIMIT
    if large or far:
        header += 4 + (16 if large else 0) + (8 if far else 0)
    start = -(-(cursor + header) // ALIGNMENT) * ALIGNMENT
    return start, start + size + (0 if not size else 24 if large or far else 16)


def _data_start(
    pickle_size: int, before: tuple[tuple[int, int], ...], nbytes: int
) -> tuple[int, int]:
    _, cursor = _place(0, len(_DATA_PICKLE), pickle_size)
    for name_length, size in before:
        _, cursor = _place(cursor, name_length, size)
    return _place(cursor, len(_DATA), nbytes)


def _total(
    cursor: int,
    after: tuple[tuple[int, int], ...],
    before: tuple[tuple[int, int], ...],
    nbytes: int,
) -> int:
    """Length of the archive whose data record (with its descriptor) ends at ``cursor``."""
    names = len(_DATA_PICKLE) + len(_DATA) + sum(length for length, _ in before)
    extra = 20 if nbytes >= _ZIP64_LIMIT else 0
    for name_length, size in after:
        extra += 12 if cursor >= _ZIP64_LIMIT else 0
        _, cursor = _place(cursor, name_length, size)
        names += name_length
    records = 2 + len(before) + len(after)
    return cursor + records * 46 + names + extra + 56 + 20 + 22


@lru_cache(maxsize=4096)
def parse_header(header: bytes) -> StoredTensor:
    """What an archive's bytes before the raw data say about the tensor.

    Tensors of one shape and dtype have equal headers, so the answer is remembered.

    Args:
        header: The first ``data_offset`` bytes of the archive.

    Raises:
        LayoutError: The raw data does not begin where the header ends, the machine that
            wrote it was not little-endian, or it is not a plain strided tensor.
    """
    name, start = _record_at(header, 0)
    if name != _DATA_PICKLE:
        raise LayoutError(f"the archive begins with {name!r}")
    content, cursor = _content_at(header, start)
    description = content
    while True:
        name, start = _record_at(header, cursor)
        if name == _DATA:
            break
        content, cursor = _content_at(header, start)
        if name == "archive/byteorder" and content != b"little":
            raise LayoutError(f"the data is {content!r}-endian")
    if start != len(header):
        raise LayoutError(f"the raw data begins at {start}, not at {len(header)}")
    return _describe(description, start)


def parse_trailer(trailer: bytes, nbytes: int) -> int:
    """Check an archive's bytes after the raw data; return the CRC-32 of the data (0: not known).

    Raises:
        LayoutError: They do not belong to ``nbytes`` of data.
    """
    sizes = struct.Struct("<4sIQQ" if nbytes >= _ZIP64_LIMIT else "<4sIII")
    if len(trailer) < sizes.size + 22:
        raise LayoutError("the archive ends too early")
    signature, crc, *found = sizes.unpack_from(trailer)
    if signature != _DESCRIPTOR or found != [nbytes, nbytes]:
        raise LayoutError(f"the archive holds {found} bytes of data, not {nbytes}")
    if trailer[-22:-18] != b"PK\x05\x06":
        raise LayoutError("the archive has no end record")
    return int(crc)


def _record_at(header: bytes, cursor: int) -> tuple[str, int]:
    """Name of the record whose local header is at ``cursor``, and where its data begins."""
    if cursor + _LOCAL_HEADER.size > len(header):
        raise LayoutError(f"there is no record at {cursor}")
    fields = _LOCAL_HEADER.unpack_from(header, cursor)
    if fields[0] != _LOCAL or fields[3] != 0:
        raise LayoutError(f"there is no uncompressed record at {cursor}")
    begin = cursor + _LOCAL_HEADER.size
    name = header[begin : begin + fields[-2]].decode("utf-8", "replace")
    return name, begin + fields[-2] + fields[-1]


def _content_at(header: bytes, start: int) -> tuple[bytes, int]:
    """Data of the small record that begins at ``start``, and where the next header is.

    Its size stands behind it, in the descriptor.
    """
    found = header.find(_DESCRIPTOR, start)
    while found >= 0:
        if header[found + 8 : found + 16] == struct.pack("<II", found - start, found - start):
            return header[start:found], found + 16
        found = header.find(_DESCRIPTOR, found + 1)
    raise LayoutError(f"the record at {start} has no end")


_STORAGES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
}


@dataclass(frozen=True)
class _Name:
    """Stands for a global of torch; nothing is imported."""

    name: str


def _describe(data: bytes, data_offset: int) -> StoredTensor:
    try:
        check_sizes(data)
        value = _TensorUnpickler(io.BytesIO(data)).load()
    except LayoutError:
        raise
    except Exception as error:
        # A damaged pickle may raise nearly anything.
        raise LayoutError(f"data.pkl cannot be read: {error}") from error
    if not isinstance(value, StoredTensor):
        raise LayoutError(f"data.pkl holds a {type(value).__name__}")
    return StoredTensor(
        value.dtype,
        value.numel,
        value.storage_offset,
        value.shape,
        value.strides,
        data_offset,
    )


class _TensorUnpickler(pickle.Unpickler):
    """Knows how a plain tensor is rebuilt, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _plain,
            ("torch._utils", "_rebuild_tensor_v3"): _typed,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch.storage", "UntypedStorage"): _Name("untyped"),
            ("collections", "OrderedDict"): dict,
        }.get((module, name))
        if known is not None:
            return known
        if module == "torch":
            return _Name(_STORAGES.get(name, name))
        raise LayoutError(f"data.pkl names {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, int]:
        kind, storage, key, _, numel = pid
        if kind != "storage" or key != "0" or not isinstance(storage, _Name):
            raise LayoutError(f"data.pkl refers to {pid!r}")
        return storage.name, int(numel)


def _plain(
    storage: tuple[str, int], offset: int, shape: Any, strides: Any, *rest: Any
) -> StoredTensor:
    if len(rest) != 2:  # requires_grad, hooks; a third one holds conj and neg flags
        raise LayoutError("the tensor has flags")
    dtype, numel = storage
    return StoredTensor(dtype, numel, offset, tuple(shape), tuple(strides), 0)


def _typed(
    storage: tuple[str, int], offset: int, shape: Any, strides: Any, *rest: Any
) -> StoredTensor:
    if len(rest) != 3 or storage[0] != "untyped":  # requires_grad, hooks, dtype
        raise LayoutError("the tensor has flags")
    # An untyped storage counts bytes. How many make an element only torch knows; whether
    # they fit is checked against the tensor's size by the caller.
    count = 1
    for size in shape:
        count *= size
    return StoredTensor(rest[2].name, count, offset, tuple(shape), tuple(strides), 0)


def _parameter(data: StoredTensor, *_: Any) -> StoredTensor:
    return data
