"""What a pickle may take: keys that are soon compared, memory that its size accounts for. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Any

# Parts of a key at most, counted as often as they are met.
_KEY_PARTS = 10_000
_KEY_DEPTH = 100
# Different keys with one hash: each is compared with all others.
_MOST_ALIKE = 64

# Bytes that any item may copy, and how often each of its own.
_COPIED, _TIMES = 2**28, 8
# Bytes that containers take for each value at most, when they are made of others.
_EACH, _IN_TUPLES = 128, 16
_SMALL = 8
_BYTES, _CONTAINERS = (str, bytes, bytearray), (list, deque, dict, set, frozenset)


class RefusedError(ValueError):
    """The pickle wants something that is not allowed.

    ``name`` is what it names, where that is what was refused.
    """

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class TooMuchError(RefusedError):
    """The pickle makes far more than it has bytes."""


def need(good: bool, name: str) -> None:
    """Refuse what ``name`` is to be made of, unless it is good."""
    if not good:
        raise RefusedError(f"it makes a {name} of something unusual", name)


def check_key(key: Any) -> Any:
    """Refuse what takes long to hash or compare, or has no end for the stack.

    A tuple of 45 levels that holds each level twice has 2**45 parts, and Python's hash of a
    tuple that is nested a million times overflows the stack.
    """
    if type(key) is str or (type(key) is int and -(2**64) < key < 2**64):
        return key
    found, left = 0, [(key, 0)]
    while left:
        part, depth = left.pop()
        found += 1
        if isinstance(part, (tuple, frozenset)):
            found += len(part)
            depth += 1
            if found <= _KEY_PARTS:
                left += [(inner, depth) for inner in part]
        elif isinstance(part, slice):
            left += [(inner, depth + 1) for inner in (part.start, part.stop, part.step)]
        elif isinstance(part, int):
            found += part.bit_length() // 64
        if found > _KEY_PARTS or depth > _KEY_DEPTH:
            raise RefusedError("a key has too many parts")
    return key


class KeyCheck:
    """Looks at the keys of containers; of those that hash alike it lets through a few.

    Texts and bytes hash at random. Of small numbers few hash alike; of tuples, large numbers
    and the like as many as somebody wants.
    """

    def __init__(self) -> None:
        self._alike: dict[int, list[Any]] = {}

    def __call__(self, key: Any) -> Any:
        """The key.

        Raises:
            RefusedError: It takes too long to hash, or is one of too many that hash alike.
        """
        kind = type(key)
        if kind is str or kind is bytes or (kind is int and -(2**64) < key < 2**64):
            return key
        known = self._alike.setdefault(hash(check_key(key)), [])
        if key not in known:
            known.append(key)
            if len(known) > _MOST_ALIKE:
                raise RefusedError("too many of its keys have the same hash")
        return key


class Allowance:
    """Bytes that one item may make of those that it holds: each again, but not without end.

    A text of a megabyte can be remembered, and copied by every few bytes that follow.

    Args:
        stored: Bytes that the item has.
    """

    def __init__(self, stored: int) -> None:
        self._stored = stored
        self._left = _COPIED + _TIMES * stored

    def spend(self, size: int) -> None:
        """Count bytes that are about to be made.

        Raises:
            TooMuchError: They are more than are left.
        """
        self._left -= size
        if self._left < 0:
            raise TooMuchError(f"it makes far more than its {self._stored} bytes")

    def weigh(self, arguments: tuple[Any, ...], again: Container[int]) -> None:
        """Count what a call may copy of what it is given, and of what tuples hold within that.

        Args:
            again: Ids of what the pickle has remembered and used once more. All else is its own
                bytes, and is copied once.

        Raises:
            TooMuchError: It is more than is left.
        """
        total, left = 0, [(arguments, id(arguments) in again)]
        while left:
            values, counts = left.pop()
            for value in values:
                repeated = counts or id(value) in again
                if isinstance(value, tuple):
                    left.append((value, repeated))
                if repeated:
                    total += _SMALL + _weight(value)
            if total > self._left:
                break
        self.spend(total)


def _weight(value: Any) -> int:
    if isinstance(value, _BYTES):
        return len(value)
    if isinstance(value, _CONTAINERS):
        return _EACH * len(value)
    if isinstance(value, tuple):
        return _IN_TUPLES * len(value)
    return value.bit_length() // 8 if isinstance(value, int) else 0
