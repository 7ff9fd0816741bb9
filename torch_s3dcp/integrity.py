"""How far a load verifies what arrives, and items that have arrived whole. Pure."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from typing import IO, Literal, cast, get_args

from .archive import parse_trailer
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


class Verification:
    """What one item is compared with as it arrives, and whether that was enough.

    Args:
        stored: The item.
        level: How far it is to be verified.
    """

    def __init__(self, stored: StoredItem, level: Level) -> None:
        self.level = level
        #: What its bytes are compared with as they arrive.
        self.checksums = known_checksums(stored, level)
        #: Whether nothing can be wrong with the item once it is finished.
        self.enough = self.checksums is not None
        #: Whether the archive's own checksums are all there is.
        self.by_archive = level == "full" and self.checksums is None
        self._transformed = bool(stored.transforms)

    def archive(self, data: memoryview) -> None:
        """Compare the records of an archive with its own checksums, if these are all there is.

        Raises:
            DamagedItem: They do not match.
        """
        if not self.by_archive or self._transformed:
            return
        sound = is_sound_archive(data)
        if sound is False:
            raise DamagedItem
        self.enough = sound is True

    def trailer(self, data: memoryview, nbytes: int) -> int:
        """Compare an archive's end with the metadata; gives the CRC-32 of the data, or 0.

        Not looked at where all bytes were compared with checksums, or where none are to be.

        Raises:
            LayoutError: It does not belong to ``nbytes`` of data.
        """
        known = self.level == "off" or self.checksums is not None
        return 0 if known else parse_trailer(bytes(data), nbytes)

    def compare(self, stored: int, found: int) -> None:
        """Compare the CRC-32 of the data with the archive's; 0 is none.

        Raises:
            DamagedItem: They differ.
        """
        if stored and stored != found:
            raise DamagedItem
        self.enough = stored != 0


def joined(sums: Iterable[tuple[int, int, int]]) -> int:
    """The CRC-32 of data from those of its pieces: start, end, value."""
    value = 0
    for start, end, part in sorted(sums):
        value = ZIP_CRC.combine(value, part, end - start)
    return value


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
