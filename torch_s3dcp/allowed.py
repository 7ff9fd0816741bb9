"""What a stored item may name, and why calling it with any arguments does no harm.

Each entry takes only arguments of the kinds that ``pickle`` writes for it. None imports,
runs code of the pickle's choice, or makes more than a small multiple of what it is given.
What is missing here is missing for a reason: ``Fraction("1e999999999")`` takes gigabytes,
``functools.partial`` and ``operator`` call anything, process groups and device meshes talk
to other ranks, ``torch.Tensor(10**12)`` allocates.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

import torch

from .arrays import array_names
from .exceptions import ConfigurationError
from .interpreter import Allowed, set_attributes
from .limits import KeyCheck, RefusedError, need
from .tensors import tensor_names

#: What a user may allow: a class or function, or one with the name that pickles call it by.
SafeGlobal = Callable[..., Any] | tuple[Callable[..., Any], str]

_ENCODINGS = ("latin1", "latin-1", "utf-8", "ascii")


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    need(type(text) is str and encoding in _ENCODINGS, "_codecs.encode")
    return bytes(text, encoding)


def _bytearray(*arguments: Any) -> bytearray:
    # bytearray(10**12) would be memory from nothing.
    if len(arguments) == 2:
        return bytearray(_encode(*arguments))
    need(all(type(argument) is bytes for argument in arguments), "bytearray")
    return bytearray(*arguments)


def _from_items(make: Callable[..., Any]) -> Callable[..., Any]:
    """A container of items that are there already."""

    def call(*arguments: Any) -> Any:
        need(all(type(a) in (list, tuple, dict, OrderedDict) for a in arguments), make.__name__)
        check = KeyCheck()
        for items in arguments:
            for item in items:
                pair = make is OrderedDict and type(item) in (list, tuple) and item
                check(item[0] if pair else item)
        return make(*arguments)

    return call


def _deque(items: Any = (), maxlen: Any = None) -> Any:
    need(type(items) in (list, tuple), "deque")
    return deque(items, maxlen)


def _defaultdict(factory: Any = None, items: Any = None) -> Any:
    need(factory is None or factory in _FACTORIES, "defaultdict")
    need(items is None or type(items) is dict, "defaultdict")
    return defaultdict(factory, *([] if items is None else [items]))


_FACTORIES: tuple[type, ...] = (list, dict, set, tuple, int, float, str, bool, OrderedDict)


def _of_numbers(make: Callable[..., Any]) -> Callable[..., Any]:
    """Something of a fixed size, made of numbers and text."""

    def call(*arguments: Any) -> Any:
        small = (int, float, bool, str, bytes, type(None), datetime.timedelta)
        for argument in arguments:
            # Zones of other classes are there only if the user allowed these.
            known = type(argument) in small or isinstance(argument, datetime.tzinfo)
            need(known, _full_name(make))
        return make(*arguments)

    return call


def _size(values: Any) -> torch.Size:
    need(type(values) in (list, tuple), "torch.Size")
    return torch.Size(values)


def _layout(text: Any) -> Any:
    need(type(text) is str, "torch.serialization._get_layout")
    # Not getattr: that imports modules of torch.
    layout = vars(torch).get(text.removeprefix("torch."))
    need(isinstance(layout, torch.layout), "torch.serialization._get_layout")
    return layout


def _namespace(make: Callable[[], Any]) -> Allowed:
    def build(target: Any, state: Any) -> None:
        need(type(state) is dict, "argparse.Namespace")
        set_attributes(target, state)

    kind: Any = make
    # Without arguments: a keyword such as __reduce_ex__ would decide how it is saved anew.
    return Allowed(kind, lambda: make(), build)


def _build_uuid(target: Any, state: Any) -> None:
    # Those made from a clock and an address say whether they are safe to be unique.
    need(type(state) is dict and "int" in state and set(state) <= {"int", "is_safe"}, "uuid.UUID")
    need(type(state.get("is_safe", 0)) is int, "uuid.UUID")
    need(type(state["int"]) is int and 0 <= state["int"] < 2**128, "uuid.UUID")
    target.__setstate__(state)


def _functions() -> dict[str, Allowed]:
    calls: dict[str, Callable[..., Any]] = {
        "_codecs.encode": _encode,
        "torch.serialization._get_layout": _layout,
    }
    return {name: Allowed(call, call) for name, call in calls.items()}


def _classes() -> dict[str, Allowed]:
    return {
        "builtins.set": Allowed(set, _from_items(set)),
        "builtins.frozenset": Allowed(frozenset, _from_items(frozenset)),
        "builtins.bytearray": Allowed(bytearray, _bytearray),
        # Empty bytes; others come through _codecs.encode.
        "builtins.bytes": Allowed(bytes, lambda: b""),
        "builtins.complex": Allowed(complex, _of_numbers(complex)),
        "builtins.slice": Allowed(slice, _of_numbers(slice)),
        "builtins.range": Allowed(range, _of_numbers(range)),
        **{f"builtins.{kind.__name__}": Allowed(kind) for kind in (*_FACTORIES[:2], int, float)},
        "builtins.str": Allowed(str),
        # The interpreter looks at what is asked of whom.
        "builtins.getattr": Allowed(getattr, getattr),
        "builtins.bool": Allowed(bool),
        "builtins.tuple": Allowed(tuple),
        "collections.OrderedDict": Allowed(
            OrderedDict, _from_items(OrderedDict), _build_ordered_dict
        ),
        "collections.Counter": Allowed(Counter, _from_items(Counter)),
        "collections.defaultdict": Allowed(defaultdict, _defaultdict),
        "collections.deque": Allowed(deque, _deque),
        "decimal.Decimal": Allowed(Decimal, _of_numbers(Decimal)),
        **{
            f"datetime.{kind.__name__}": Allowed(kind, _of_numbers(kind))
            for kind in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
        },
        "datetime.timezone": Allowed(datetime.timezone, _of_numbers(datetime.timezone)),
        "uuid.UUID": Allowed(uuid.UUID, lambda: object.__new__(uuid.UUID), _build_uuid),
        **_paths(),
        "argparse.Namespace": _namespace(argparse.Namespace),
        "types.SimpleNamespace": _namespace(types.SimpleNamespace),
        "torch.Size": Allowed(torch.Size, _size),
        "torch.device": Allowed(torch.device, _of_numbers(torch.device)),
    }


def _build_ordered_dict(target: Any, state: Any) -> None:
    # Such as the _metadata of a module's state dict.
    need(type(state) is dict, "OrderedDict")
    set_attributes(target, state)


def _paths() -> dict[str, Allowed]:
    names = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path", "PurePath")
    return {
        f"{module}.{name}": Allowed(getattr(pathlib, name), _of_numbers(getattr(pathlib, name)))
        for module in ("pathlib", "pathlib._local")
        for name in names
    }


def _values() -> dict[str, Allowed]:
    """Dtypes and the like: nothing of these is called."""
    kinds = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
    return {
        **{
            f"torch.{n}": Allowed(value) for n, value in vars(torch).items() if type(value) in kinds
        },
    }


# Protocol 2, which torch.save uses, calls builtins by their names of Python 2.
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "exceptions": "builtins"}
_OLD_NAMES = {"builtins.xrange": "builtins.range", "builtins.unicode": "builtins.str"}
_OLD_NAMES["builtins.long"] = "builtins.int"
_DEFAULT = {**_functions(), **_classes(), **_values(), **array_names(), **tensor_names()}


_TENSORS = tensor_names()


def check_safe_globals(allowed: Any) -> tuple[SafeGlobal, ...]:
    """The user's list, once it is known to be one.

    Raises:
        ConfigurationError: An entry is neither a class or function, nor one with a name.
    """
    if isinstance(allowed, (str, bytes)) or not isinstance(allowed, Iterable):
        raise ConfigurationError(f"safe_globals must be a list, got {allowed!r}")
    found: tuple[SafeGlobal, ...] = tuple(allowed)
    for entry in found:
        pair = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], str)
        value: Any = entry[0] if pair and isinstance(entry, tuple) else entry
        if not callable(value) or not (pair or hasattr(value, "__qualname__")):
            raise ConfigurationError(
                "safe_globals holds classes and functions, or (class or function, 'module.name'); "
                f"got {entry!r}"
            )
    return found


_MESH: Any = torch.distributed.device_mesh.DeviceMesh
_LAYOUTS = "torch.distributed._mesh_layout"


def _no_call(*_: Any) -> Any:
    raise RefusedError("it makes a device mesh or a layout of one, not the state of one")


def _trusted(value: Any, *, counted: bool) -> Allowed:
    # torch declares these safe by itself; a new mesh waits for ranks that do not come, and a layout
    # goes through a range of any length. Pickles call neither: they give them their state.
    of_mesh = value is _MESH or getattr(value, "__module__", None) == _LAYOUTS
    call = _no_call if of_mesh else value
    build = _build_trusted if isinstance(value, type) else None
    return Allowed(value, call, build, trusted=True, counted=counted)


def _build_trusted(target: Any, state: Any) -> None:
    restore = getattr(target, "__setstate__", None)
    if restore is not None:
        restore(state)
    else:
        set_attributes(target, state)


def allowed_names(users: Sequence[SafeGlobal] = ()) -> Callable[[str], Allowed]:
    """What names stand for, in one load: ours, torch's safe globals, then the user's."""
    torchs: Iterable[Any] = torch.serialization.get_safe_globals()
    more: dict[str, Allowed] = {}
    for known, counted in ((torchs, True), (users, False)):
        for entry in known:
            value, name = entry if isinstance(entry, tuple) else (entry, _full_name(entry))
            more[name] = _trusted(value, counted=counted)

    def find(name: str) -> Allowed:
        module, _, rest = name.partition(".")
        name = f"{_OLD_MODULES.get(module, module)}.{rest}"
        name = _OLD_NAMES.get(name, name)
        # torch's own functions cannot do with what stands for storages here.
        found = _TENSORS.get(name) or more.get(name) or _DEFAULT.get(name)
        if found is None:
            raise RefusedError(f"it names {name}", name)
        return found

    return find


def _full_name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
