"""The records of an archive of ``torch.save``, all in memory, and archives made anew. Pure.

Such an archive is a zip whose records are stored as they are. Only that is read here: what
is compressed, overlaps or lies elsewhere is refused, so that records never take more memory
than the archive itself.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import IO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64, _LOCATOR = struct.Struct("<4sQ2H2I4Q"), 20
_EXTRA = struct.Struct("<2H")
# Instead of a number that does not fit into 32 bits; the field that holds it then.
_LARGE, _ZIP64 = 2**32 - 1, 1
_LOCAL_MARK, _ENTRY_MARK = b"PK\x03\x04", b"PK\x01\x02"
_END_MARK, _END64_MARK = b"PK\x05\x06", b"PK\x06\x06"
PICKLE = "data.pkl"


def is_archive(data: memoryview) -> bool:
    """Whether it begins as a zip does."""
    return data[:4] == _LOCAL_MARK


def read_records(data: memoryview) -> dict[str, memoryview]:
    """The records by name, without the folder that they are all in. Nothing is copied.

    Raises:
        ValueError: It is not an archive as ``torch.save`` makes them, or damaged.
    """
    count, size, start = _directory(data)
    records: dict[str, memoryview] = {}
    folder, position, stored = None, start, 0
    for _ in range(count):
        full, content, position = _record_at(data, position, start)
        within, _, name = full.partition("/")
        if folder is None:
            folder = within
        if not name or within != folder or name in records:
            raise ValueError(f"record {full!r} is there twice, or not where the others are")
        records[name] = content
        stored += len(content)
    if stored > start or position != start + size:
        raise ValueError("its records overlap")
    return records


class RecordFile:
    """The records of an archive in a seekable file, each read when it is asked for.

    Args:
        file: Read from only while records are looked at. No checksums are compared.

    Raises:
        ValueError: It is not an archive as ``torch.save`` makes them, or damaged.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._length = file.seek(0, 2)
        try:
            with ZipFile(file) as archive:
                entries = archive.infolist()
        except BadZipFile as error:
            raise ValueError(f"it is not an archive of torch.save: {error}") from error
        self._records: dict[str, ZipInfo] = {}
        folders = {entry.filename.partition("/")[0] for entry in entries}
        for entry in entries:
            name = entry.filename.partition("/")[2]
            if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size:
                raise ValueError(f"record {entry.filename!r} is compressed")
            if not name or name in self._records or len(folders) > 1:
                raise ValueError(f"record {entry.filename!r} is there twice, or misplaced")
            self._records[name] = entry
        if sum(entry.file_size for entry in entries) > self._length:
            raise ValueError("its records overlap")

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __getitem__(self, name: str) -> memoryview:
        """A record's bytes, in memory of their own."""
        entry = self._records.get(name)
        if entry is None:
            raise ValueError(f"there is no record {name!r}")
        self._file.seek(entry.header_offset)
        local = _LOCAL.unpack(self._file.read(_LOCAL.size))
        begin = entry.header_offset + _LOCAL.size + local[9] + local[10]
        if local[0] != _LOCAL_MARK or begin + entry.file_size > self._length:
            raise ValueError(f"record {name!r} lies outside of the archive")
        content = memoryview(bytearray(entry.file_size))
        self._file.seek(begin)
        filled = 0
        while filled < len(content):
            count = self._file.readinto(content[filled:])  # type: ignore[attr-defined]
            if not count:
                raise ValueError(f"record {name!r} is cut off")
            filled += count
        return content


def _directory(data: memoryview) -> tuple[int, int, int]:
    """How many records there are; size and place of the directory that names them."""
    end = len(data) - _END.size
    if end < 0:
        raise ValueError("it is too short for an archive")
    mark, disk, other, count, total, size, start, comment = _END.unpack_from(data, end)
    if mark != _END_MARK or comment or disk or other or count != total:
        raise ValueError("it does not end as an archive of torch.save")
    long = end - _END64.size - _LOCATOR
    if long >= 0 and data[long : long + 4] == _END64_MARK:
        # torch.save writes it always.
        end = long
        *_, count, total, size, start = _END64.unpack_from(data, long)
    if start + size != end or count != total:
        raise ValueError("its directory is damaged")
    return count, size, start


def _record_at(data: memoryview, position: int, limit: int) -> tuple[str, memoryview, int]:
    """Name and content of what an entry of the directory describes; where the next one is."""
    entry = _ENTRY.unpack_from(data, position)
    mark, method, crc = entry[0], entry[4], entry[7]
    name_length, extra, comment = entry[10], entry[11], entry[12]
    begin = position + _ENTRY.size
    name = bytes(data[begin : begin + name_length]).decode()
    more = data[begin + name_length : begin + name_length + extra]
    size, packed, header = _large([entry[9], entry[8], entry[16]], more)
    if mark != _ENTRY_MARK or method or packed != size:
        raise ValueError(f"record {name!r} is compressed, or damaged")
    local = _LOCAL.unpack_from(data, header)
    content_start = header + _LOCAL.size + local[9] + local[10]
    content = data[content_start : content_start + size]
    if local[0] != _LOCAL_MARK or content_start + size > limit:
        raise ValueError(f"record {name!r} lies outside of the archive")
    # Zero: torch.save was told to take no checksums.
    if crc and zlib.crc32(content) != crc:
        raise ValueError(f"record {name!r} does not match its CRC-32")
    return name, content, begin + name_length + extra + comment


def _large(numbers: list[int], extra: memoryview) -> list[int]:
    """The numbers of an entry, those from 4 GiB on as what follows its name says (zip64)."""
    position = 0
    while _LARGE in numbers and position + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, position)
        position += _EXTRA.size
        if kind == _ZIP64:
            values = _numbers(extra[position : position + length])
            return [next(values) if number == _LARGE else number for number in numbers]
        position += length
    return numbers


def _numbers(field: memoryview) -> Iterator[int]:
    # A number of 4 bytes may follow: the disk that the record begins on.
    for (number,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8]):
        yield number
    raise ValueError("its directory is damaged")


def _entries(name: str, content: bytes, position: int) -> tuple[bytes, bytes]:
    """A record with what comes before it, and its entry in the directory."""
    path, crc, size = f"archive/{name}".encode(), zlib.crc32(content), len(content)
    local = _LOCAL.pack(_LOCAL_MARK, 0, 0, 0, 0, 0, crc, size, size, len(path), 0)
    entry = _ENTRY.pack(
        _ENTRY_MARK, 0, 0, 0, 0, 0, 0, crc, size, size, len(path), 0, 0, 0, 0, 0, position
    )
    return local + path + content, entry + path


_CONSTANT = {
    ".format_version": b"1",
    ".storage_alignment": b"64",
    "byteorder": b"little",
    "version": b"3\n",
    ".data/serialization_id": b"0" * 40,
}


def _constant_records() -> tuple[bytes, bytes, int]:
    blocks, entries, position = b"", b"", 0
    for name, content in _CONSTANT.items():
        block, entry = _entries(name, content, position)
        blocks, entries, position = blocks + block, entries + entry, position + len(block)
    return blocks, entries, len(_CONSTANT) + 1


_BLOCKS, _DIRECTORY, _COUNT = _constant_records()


def archive_of(pickled: bytes, largest: int = 2**32 - 4096) -> bytes:
    """A new archive around a pickle, as ``torch.load`` reads it.

    Args:
        largest: Bytes of a pickle that needs nothing of zip64.
    """
    if len(pickled) > largest:
        made = BytesIO()
        with ZipFile(made, "w") as archive:
            for name, content in {**_CONSTANT, PICKLE: pickled}.items():
                archive.writestr(f"archive/{name}", content)
        return made.getvalue()
    block, entry = _entries(PICKLE, pickled, len(_BLOCKS))
    directory = _DIRECTORY + entry
    start = len(_BLOCKS) + len(block)
    end = _END.pack(_END_MARK, 0, 0, _COUNT, _COUNT, len(directory), start, 0)
    return b"".join((_BLOCKS, block, directory, end))
