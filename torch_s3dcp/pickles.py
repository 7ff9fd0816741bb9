"""Looks through a pickle before it is loaded. Pure.

The interpreter's own unpickler takes a pickle's word for sizes: one flipped bit turns an
opcode into "remember this as number 1.9 billion", and a list of that length is allocated.
"""

from __future__ import annotations

import pickletools
import re
from struct import unpack_from
from typing import NamedTuple

_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: (1, "<B"),
    pickletools.TAKEN_FROM_ARGUMENT4: (4, "<i"),
    pickletools.TAKEN_FROM_ARGUMENT4U: (4, "<I"),
    pickletools.TAKEN_FROM_ARGUMENT8U: (8, "<Q"),
}
_STOP, _LONG_BINPUT, _PUT = ord("."), ord("r"), ord("p")
_UNKNOWN, _LINE = -1000, -1
_LINES = {"GLOBAL": 2, "INST": 2}


def _argument_sizes() -> list[int]:
    """For each opcode how many bytes of argument follow it, or one of pickletools' signs."""
    sizes = [_UNKNOWN] * 256
    for opcode in pickletools.opcodes:
        argument = opcode.arg
        # EXT: numbers for names, which nobody registers. DUP: no pickler writes it, and with it a
        # few bytes make a key that takes for ever to hash.
        if not opcode.name.startswith(("EXT", "DUP")):
            sizes[ord(opcode.code)] = 0 if argument is None else argument.n
    return sizes


_SIZES = _argument_sizes()


def _harmless_run(*others: int) -> re.Pattern[bytes]:
    """Opcodes with arguments of a fixed size that say nothing about sizes, some at once.

    None of them is one of ``others``.
    """
    codes: dict[int, bytes] = {}
    for code, size in enumerate(_SIZES):
        if size >= 0 and code not in (_STOP, _LONG_BINPUT, *others):
            codes[size] = codes.get(size, b"") + re.escape(bytes([code]))
    kinds = [b"[" + codes[size] + b"]" + b"." * size for size in sorted(codes)]
    # Integers of up to 8 bytes: states of random number generators are full of them.
    kinds += [re.escape(b"\x8a" + bytes([size])) + b"." * size for size in range(1, 9)]
    return re.compile(b"(?:" + b"|".join(kinds) + b"){1,64}", re.DOTALL)


_HARMLESS_RUN = _harmless_run()
# All tuples but the empty one, and frozen sets.
_TUPLES = frozenset(b"t\x85\x86\x87\x91")
# Integers of more than 8 bytes where such a run ends, or as text: endlessly many hash alike.
_LARGE = frozenset(b"\x8a\x8bIL")
_RUN_WITHOUT_TUPLES = _harmless_run(*_TUPLES)
_LINE_COUNTS = {ord(op.code): _LINES.get(op.name, 1) for op in pickletools.opcodes}


class Look(NamedTuple):
    """What a pickle turned out to be.

    Attributes:
        end: Where it ends; bytes may follow.
        makes_tuples: Whether it makes tuples, other than the empty one, or frozen sets.
        large_numbers: Whether it holds integers of more than 8 bytes.
    """

    end: int
    makes_tuples: bool
    large_numbers: bool

    @property
    def odd_keys(self) -> bool:
        """Whether it makes what may take for ever as a key."""
        return self.makes_tuples or self.large_numbers


def check_sizes(data: bytes) -> int:
    """Refuse a pickle that asks for more memory than its own length accounts for.

    Returns:
        Where the pickle ends; bytes may follow.

    Raises:
        ValueError: An opcode is unknown, a size or number is too large, or the end is missing.
    """
    return look_through(data).end


def look_through(data: bytes) -> Look:
    """What :func:`check_sizes` does, and what else a walk through a pickle tells.

    Raises:
        ValueError: As there.
    """
    position, end, large = 0, len(data), False
    sizes, runs = _SIZES, _RUN_WITHOUT_TUPLES
    while position < end:
        run = runs.match(data, position)
        if run is not None:
            position = run.end()
            continue
        opcode = data[position]
        size = sizes[opcode]
        position += 1
        large = large or opcode in _LARGE
        if size >= 0:
            if opcode == _LONG_BINPUT:
                _check_number(int.from_bytes(data[position : position + 4], "little"), end)
            elif opcode == _STOP:
                return Look(position, runs is _HARMLESS_RUN, large)
            elif opcode in _TUPLES:
                runs = _HARMLESS_RUN  # one is enough to know
            position += size
        elif size in _LENGTHS:
            width, form = _LENGTHS[size]
            if position + width > end:
                break
            (length,) = unpack_from(form, data, position)
            position += width + _check_number(length, end)
        elif size == _LINE:
            position = _skip_lines(data, position, opcode)
        else:
            raise ValueError(f"unknown opcode {opcode:#x} at {position - 1}")
    raise ValueError("the pickle has no end")


def _skip_lines(data: bytes, position: int, opcode: int) -> int:
    for _ in range(_LINE_COUNTS[opcode]):
        line_end = data.find(b"\n", position)
        if line_end < 0:
            raise ValueError("a line has no end")
        if opcode == _PUT:
            _check_number(int(data[position:line_end]), len(data))
        position = line_end + 1
    return position


def _check_number(number: int, limit: int) -> int:
    if not 0 <= number <= limit:
        raise ValueError(f"a size of {number} in a pickle of {limit} bytes")
    return number
