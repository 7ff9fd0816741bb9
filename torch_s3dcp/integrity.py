"""How far a load verifies what arrives, and items that have arrived whole. Pure."""

from __future__ import annotations

import struct
import zipfile
from typing import IO, Literal, cast, get_args

from .checksums import CRC64, ZIP_CRC
from .chunk_checksums import ItemChecksums, parse_checksums
from .exceptions import ConfigurationError
from .plan import StoredItem
from .segments import view_of

#: ``full``: all bytes are compared with checksums, where there are some. ``headers``: archives
#: must describe themselves as the metadata does. ``off``: only what it takes to place the bytes.
Level = Literal["full", "headers", "off"]
_LOCAL_HEADER = struct.Struct("<4s2xH18xHH")


class DamagedItem(Exception):
    """An item is not what was stored; it has to be fetched again. Never leaves a load."""


def check_level(level: str) -> Level:
    """The level of that name.

    Raises:
        ConfigurationError: There is none.
    """
    if level not in get_args(Level):
        raise ConfigurationError(f"integrity must be one of {get_args(Level)}, got {level!r}")
    return cast("Level", level)


def known_checksums(stored: StoredItem, level: Level) -> ItemChecksums | None:
    """The checksums that a level wants compared with an item; None: there is nothing to compare."""
    if level != "full":
        return None
    return parse_checksums(stored.checksums, len(stored.byte_range))


def first_damage(data: memoryview, checksums: ItemChecksums) -> tuple[int, int] | None:
    """The first piece of a whole item that does not match its checksum."""
    for start, end, value in checksums.pieces(len(data)):
        if CRC64.update(data[start:end], 0) != value:
            return start, end
    return None


def is_sound_archive(data: memoryview) -> bool | None:
    """Whether the records of a zip archive match their CRC-32; None where nobody can know."""
    if not (bytes(data[:4]) == b"PK\x03\x04" or bytes(data[-22:-18]) == b"PK\x05\x06"):
        return None
    try:
        with zipfile.ZipFile(cast("IO[bytes]", view_of(data))) as archive:
            records = [_is_sound(data, record) for record in archive.infolist()]
    except Exception:  # noqa: BLE001 - a damaged archive may raise nearly anything
        return False
    if False in records:
        return False
    return None if None in records else True


def _is_sound(data: memoryview, record: zipfile.ZipInfo) -> bool | None:
    if record.compress_type != zipfile.ZIP_STORED:
        return None  # torch compresses nothing; and what it becomes may be large
    signature, flags, name_size, extra_size = _LOCAL_HEADER.unpack_from(data, record.header_offset)
    begin = record.header_offset + _LOCAL_HEADER.size
    name = bytes(data[begin : begin + name_size]).decode()
    if (signature, flags, name) != (b"PK\x03\x04", record.flag_bits, record.orig_filename):
        return False
    begin += name_size + extra_size
    content = data[begin : begin + record.file_size]
    if len(content) < record.file_size:
        return False
    if ZIP_CRC.update(content, 0) == record.CRC:
        return True
    # torch can be told to leave them out.
    return False if record.CRC else None
