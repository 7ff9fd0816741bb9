"""What ``torch.save`` writes around a tensor's data, used again for tensors of the same kind. Pure.

Two archives of tensors with equal dtype, shape and strides differ in their data, in its
CRC-32, and in an id made of the records' CRC-32. So one archive is the mould for all others,
and ``torch.save`` need not run for each: that costs 80 us, and a class that is made each time.

Facts: read off archives of torch 2.13. A mould that does not give its own archive back, as
one of another version may, is not used.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_CRC = struct.Struct("<I")
_SEED = 0x9E3779B9
_WORD = 2**64 - 1
_DATA, _ID = b"archive/data/0", b"archive/.data/serialization_id"
# Half of the id is about names, half about contents, in decimal digits.
_ID_SIZE, _HALF = 40, 20


@dataclass(frozen=True)
class _Record:
    """An entry of the central directory: where it lies in the trailer, and what it says."""

    name: bytes
    crc: int
    entry: int
    header: int


@dataclass(frozen=True)
class Envelope:
    """The bytes before and after a tensor's data.

    Args:
        header: All bytes before the data.
        trailer: All bytes after the data.
    """

    header: bytes
    trailer: bytes
    _crc_places: tuple[int, ...]
    _id_place: int
    _id_crc_places: tuple[int, ...]
    _before: int
    _after: tuple[int, ...]

    @classmethod
    def around(cls, header: bytes, trailer: bytes, size: int) -> Envelope | None:
        """The envelope that was around ``size`` bytes of data; None for one of another kind."""
        try:
            envelope = cls._parse(header, trailer, size)
            (crc,) = _CRC.unpack_from(trailer, 4)
            same = envelope.trailer_for(crc) == trailer
        except (struct.error, ValueError):
            return None
        return envelope if same else None

    @classmethod
    def _parse(cls, header: bytes, trailer: bytes, size: int) -> Envelope:
        begin = len(header) + size
        records = _records(trailer, begin)
        names = [record.name for record in records]
        data, mark = records[names.index(_DATA)], records[names.index(_ID)]
        name_size, extra = struct.unpack_from("<2H", trailer, mark.header - begin + 26)
        place = mark.header - begin + 30 + name_size + extra
        crcs = [record.crc for record in records]
        return cls(
            header,
            trailer,
            (4, data.entry + 16),
            place,
            (place + _ID_SIZE + 4, mark.entry + 16),
            _combined(0, crcs[: names.index(_DATA)]),
            tuple(crcs[names.index(_DATA) + 1 : names.index(_ID)]),
        )

    def trailer_for(self, crc: int) -> bytes:
        """The trailer of data with that CRC-32."""
        filled = bytearray(self.trailer)
        for place in self._crc_places:
            _CRC.pack_into(filled, place, crc)
        contents = b"%020d" % _combined(self._before, (crc, *self._after))
        mark = filled[self._id_place : self._id_place + _HALF] + contents
        filled[self._id_place : self._id_place + _ID_SIZE] = mark
        for place in self._id_crc_places:
            _CRC.pack_into(filled, place, zlib.crc32(mark))
        return bytes(filled)


def _records(trailer: bytes, begin: int) -> list[_Record]:
    """The central directory of an archive whose trailer begins at ``begin``."""
    end = _END.unpack_from(trailer, len(trailer) - _END.size)
    count, place = end[4], end[6] - begin
    records = []
    for _ in range(count):
        fields = _ENTRY.unpack_from(trailer, place)
        name = trailer[place + _ENTRY.size : place + _ENTRY.size + fields[10]]
        records.append(_Record(name, fields[7], place, fields[16]))
        place += _ENTRY.size + fields[10] + fields[11] + fields[12]
    return records


def _combined(seed: int, values: tuple[int, ...] | list[int]) -> int:
    """How torch makes one number of several."""
    for value in values:
        mixed = value + _SEED + (seed << 6 & _WORD) + (seed >> 2)
        seed ^= mixed & _WORD
    return seed
