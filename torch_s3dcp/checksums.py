"""Checksums that S3 compares with what has arrived.

CRC64NVME by default: it is what S3 keeps for whole objects, and the cheapest here
(``docs/design/transport.md``). Computed in C, with the interpreter lock released; those of
parts are combined, so that no byte is looked at twice.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from awscrt import checksums as crt

try:  # the extra "isal": five times as fast as zlib
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

DEFAULT = "CRC64NVME"


@dataclass(frozen=True)
class Checksum:
    """One of S3's checksums that cover a whole object by combining those of its parts.

    ``name`` is S3's, ``width`` its bytes. ``update(block, before)`` goes on from the checksum
    of what came before; ``combine(first, second, size)`` is that of two pieces joined, the
    second of ``size`` bytes.
    """

    name: str
    width: int
    update: Callable[[memoryview, int], int]
    combine: Callable[[int, int, int], int]

    @property
    def member(self) -> str:
        """How botocore names its value in requests and answers."""
        return f"Checksum{self.name}"

    def of(self, blocks: Iterable[memoryview]) -> int:
        """Of blocks one after another."""
        value = 0
        for block in blocks:
            value = self.update(block, value)
        return value

    def text(self, value: int) -> str:
        """As S3 writes it."""
        return base64.b64encode(value.to_bytes(self.width, "big")).decode()

    def value(self, text: str) -> int:
        """From how S3 writes it."""
        return int.from_bytes(base64.b64decode(text), "big")

    def with_data(self, value: int) -> dict[str, str]:
        """What a request says that carries data. Buckets with Object Lock want the name too."""
        return {"ChecksumAlgorithm": self.name, self.member: self.text(value)}


_KNOWN = {
    "CRC64NVME": Checksum("CRC64NVME", 8, crt.crc64nvme, crt.combine_crc64nvme),
    "CRC32C": Checksum("CRC32C", 4, crt.crc32c, crt.combine_crc32c),
    "CRC32": Checksum("CRC32", 4, crt.crc32, crt.combine_crc32),
}


CRC64 = _KNOWN[DEFAULT]
#: What zip archives hold of each record. zlib computes it twice as fast as awscrt.
ZIP_CRC = Checksum("CRC32", 4, crc32, crt.combine_crc32)


def combinable(name: str | None) -> Checksum | None:
    """The checksum of that name, or the default; None for those that cannot be combined."""
    return _KNOWN.get(name or DEFAULT)
