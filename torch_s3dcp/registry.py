"""Names to reader constructors: built in, registered, or from installed plug-ins.

A plug-in is a distribution with an entry point in the group ``torch_s3dcp.readers``. It is
imported when its name is asked for, not before.
"""

from __future__ import annotations

import importlib
import inspect
import threading
import warnings
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from types import MethodType
from typing import Any

from .exceptions import ReaderRegistryError
from .readers.contract import ReaderConstructor

ENTRY_POINT_GROUP = "torch_s3dcp.readers"

# One line for each strategy that ships with the package. Each is "module:constructor".
_BUILT_IN = {
    "dcp_optimized": "torch_s3dcp.readers.dcp_optimized:DCPOptimizedReaders()",
    "direct": "torch_s3dcp.readers.direct:DirectReaders()",
    "range_based": "torch_s3dcp.readers.range_based:RangedS3Reader",
    "sequential": "torch_s3dcp.readers.sequential:SequentialS3Reader",
}

_lock = threading.Lock()
_registered: dict[str, ReaderConstructor] = {}
_plugged_in: dict[str, ReaderConstructor] = {}


def available_readers() -> tuple[str, ...]:
    """Names that :func:`get_reader` knows, sorted. Imports no plug-in."""
    return tuple(sorted({*_BUILT_IN, *_registered, *(point.name for point in _plug_ins())}))


def register_reader(name: str, constructor: ReaderConstructor) -> None:
    """Make a reader constructor available under a name, for this process.

    Registering the same constructor again is allowed and does nothing.

    Raises:
        ReaderRegistryError: The name is empty or taken, or the constructor is not callable.
    """
    if not isinstance(name, str) or not name.strip():
        raise ReaderRegistryError(f"a reader's name must be a word, not {name!r}")
    if not callable(constructor):
        raise ReaderRegistryError(
            f"reader {name!r} must be callable with (bucket, key, get_object_info, get_stream), "
            f"got {constructor!r}"
        )
    with _lock:
        if name in _registered and _identical(constructor, _registered[name]):
            return
        owner = _owner(name)
        if owner is not None:
            raise ReaderRegistryError(
                f"the reader name {name!r} is taken by {owner}; choose another"
            )
        _registered[name] = constructor


def unregister_reader(name: str) -> None:
    """Forget a reader that :func:`register_reader` added.

    Raises:
        ReaderRegistryError: The name was not registered in this process.
    """
    with _lock:
        if name not in _registered:
            raise ReaderRegistryError(f"no reader {name!r} was registered in this process")
        del _registered[name]


def get_reader(name: str) -> ReaderConstructor:
    """The reader constructor of that name, with its default settings.

    Raises:
        ReaderRegistryError: Unknown name (the message lists the known ones), two plug-ins
            claim it, or the plug-in cannot be loaded (the message names its distribution).
    """
    with _lock:
        for table in (_registered, _plugged_in):
            if name in table:
                return table[name]
    claims = [point for point in _plug_ins() if point.name == name]
    if name in _BUILT_IN:
        for point in claims:
            warnings.warn(
                f"{_distribution(point)} offers a reader {name!r}, which is the name of a "
                "built-in reader; the built-in one is used",
                stacklevel=2,
            )
        return _load_built_in(_BUILT_IN[name])
    if not claims:
        known = ", ".join(available_readers())
        raise ReaderRegistryError(f"there is no reader {name!r}; known readers: {known}")
    if len(claims) > 1:
        owners = " and ".join(sorted(_distribution(point) for point in claims))
        raise ReaderRegistryError(f"the reader name {name!r} is claimed by {owners}; uninstall one")
    constructor = _load_plug_in(claims[0])
    with _lock:
        return _plugged_in.setdefault(name, constructor)


def resolve_reader(reader: ReaderConstructor | str | None, default: str) -> ReaderConstructor:
    """A constructor from what a user may pass: a constructor, a name, or nothing.

    Raises:
        ReaderRegistryError: Neither callable nor a known name.
    """
    if reader is None:
        return get_reader(default)
    if isinstance(reader, str):
        return get_reader(reader)
    if not callable(reader):
        raise ReaderRegistryError(
            "reader_constructor must be a name or callable with (bucket, key, "
            f"get_object_info, get_stream), got {reader!r}"
        )
    try:
        inspect.signature(reader).bind("bucket", "key", None, None)
    except TypeError as error:
        raise ReaderRegistryError(
            "reader_constructor must be callable with (bucket, key, get_object_info, "
            f"get_stream), which {reader!r} is not: {error}; if it makes constructors, call it, "
            "as in S3ReaderConstructor.dcp_optimized()"
        ) from error
    except ValueError:
        pass  # a builtin that does not tell its signature
    return reader


def reader_name(constructor: Any) -> str:
    """The registered name of a constructor, whatever its settings, or ``"unknown"``."""
    known = {name: _load_built_in(address) for name, address in _BUILT_IN.items()}
    with _lock:
        known.update(_plugged_in)
        known.update(_registered)
    # The very constructor first: a name may stand for a built-in reader with other settings.
    for same in (_identical, _same_reader):
        for name, other in known.items():
            if same(constructor, other):
                return name
    return "unknown"


def _identical(constructor: Any, known: Any) -> bool:
    # A bound method is a new object each time it is named.
    return constructor is known or (isinstance(known, MethodType) and constructor == known)


def _same_reader(constructor: Any, known: Any) -> bool:
    """Equal up to settings: the same class or function, or an instance of the same class."""
    while isinstance(constructor, partial):
        constructor = constructor.func
    while isinstance(known, partial):
        known = known.func
    if _identical(constructor, known):
        return True
    plain = isinstance(known, type) or hasattr(known, "__qualname__")
    return not plain and isinstance(constructor, type(known))


def _load_built_in(address: str) -> ReaderConstructor:
    module, _, name = address.partition(":")
    value = getattr(importlib.import_module(module), name.removesuffix("()"))
    constructor: ReaderConstructor = value() if name.endswith("()") else value
    return constructor


def _plug_ins() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _load_plug_in(point: EntryPoint) -> ReaderConstructor:
    owner = _distribution(point)
    try:
        constructor = point.load()
    except Exception as error:
        raise ReaderRegistryError(
            f"the reader {point.name!r} of {owner} cannot be loaded from {point.value!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(constructor):
        raise ReaderRegistryError(
            f"the reader {point.name!r} of {owner} is not callable: {constructor!r}"
        )
    return constructor  # type: ignore[no-any-return]


def _distribution(point: EntryPoint) -> str:
    dist = point.dist
    return f"distribution {dist.name} {dist.version}" if dist else "an unnamed distribution"


def _owner(name: str) -> str | None:
    if name in _BUILT_IN:
        return "a built-in reader"
    if name in _registered:
        return f"{_registered[name]!r}"
    for point in _plug_ins():
        if point.name == name:
            return _distribution(point)
    return None
