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

import numpy as np
import torch

from .exceptions import ConfigurationError
from .interpreter import Allowed, KeyCheck, RefusedError, set_attributes
from .tensors import tensor_names

#: What a user may allow: a class or function, or one with the name that pickles call it by.
SafeGlobal = Callable[..., Any] | tuple[Callable[..., Any], str]

_ENCODINGS = ("latin1", "latin-1", "utf-8", "ascii")
# Booleans, integers, floats, complex numbers, times, byte strings, text, structures of these: no
# objects.
_KINDS = "biufcmMSUV"
_UNITS = frozenset(b"Y M W D h m s ms us ns ps fs as generic".split())
_RAW = "numpy.ndarray"


def _need(good: bool, name: str) -> None:
    if not good:
        raise RefusedError(f"it makes a {name} of something unusual", name)


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    _need(type(text) is str and encoding in _ENCODINGS, "_codecs.encode")
    return bytes(text, encoding)


def _bytearray(*arguments: Any) -> bytearray:
    # bytearray(10**12) would be memory from nothing.
    if len(arguments) == 2:
        return bytearray(_encode(*arguments))
    _need(all(type(argument) is bytes for argument in arguments), "bytearray")
    return bytearray(*arguments)


def _from_items(make: Callable[..., Any]) -> Callable[..., Any]:
    """A container of items that are there already."""

    def call(*arguments: Any) -> Any:
        _need(all(type(a) in (list, tuple, dict, OrderedDict) for a in arguments), make.__name__)
        check = KeyCheck()
        for items in arguments:
            for item in items:
                pair = make is OrderedDict and type(item) in (list, tuple) and item
                check(item[0] if pair else item)
        return make(*arguments)

    return call


def _deque(items: Any = (), maxlen: Any = None) -> Any:
    _need(type(items) in (list, tuple), "deque")
    return deque(items, maxlen)


def _defaultdict(factory: Any = None, items: Any = None) -> Any:
    _need(factory is None or factory in _FACTORIES, "defaultdict")
    _need(items is None or type(items) is dict, "defaultdict")
    return defaultdict(factory, *([] if items is None else [items]))


_FACTORIES: tuple[type, ...] = (list, dict, set, tuple, int, float, str, bool)


def _of_numbers(make: Callable[..., Any]) -> Callable[..., Any]:
    """Something of a fixed size, made of numbers and text."""

    def call(*arguments: Any) -> Any:
        small = (int, float, bool, str, bytes, type(None), datetime.timedelta, datetime.timezone)
        _need(all(type(argument) in small for argument in arguments), str(make))
        return make(*arguments)

    return call


def _size(values: Any) -> torch.Size:
    _need(type(values) in (list, tuple), "torch.Size")
    return torch.Size(values)


def _layout(text: Any) -> Any:
    _need(type(text) is str, "torch.serialization._get_layout")
    # Not getattr: that imports modules of torch.
    layout = vars(torch).get(text.removeprefix("torch."))
    _need(isinstance(layout, torch.layout), "torch.serialization._get_layout")
    return layout


def _namespace(make: Callable[[], Any]) -> Allowed:
    def build(target: Any, state: Any) -> None:
        _need(type(state) is dict, "argparse.Namespace")
        set_attributes(target, state)

    kind: Any = make
    # Without arguments: a keyword such as __reduce_ex__ would decide how it is saved anew.
    return Allowed(kind, lambda: make(), build)


def _build_uuid(target: Any, state: Any) -> None:
    _need(type(state) is dict and set(state) == {"int"}, "uuid.UUID")
    _need(type(state["int"]) is int and 0 <= state["int"] < 2**128, "uuid.UUID")
    target.__setstate__(state)


# Arrays of numpy ----------------------------------------------------------------------


def _dtype(code: Any, align: Any = False, copy: Any = True) -> np.dtype[Any]:
    _need(type(code) is str and code[:1] in _KINDS and code[1:].isdigit(), "numpy.dtype")
    # A copy: the state that follows would change the one dtype that all arrays share.
    made: np.dtype[Any] = np.dtype(code, False, True)
    return made


def _build_dtype(target: np.dtype[Any], state: Any) -> None:
    _need(type(state) is tuple and len(state) in (8, 9), "numpy.dtype")
    # A state that it may have, in any byte order; others make numpy read where nothing is.
    like = target
    if target.kind in "mM" and len(state) == 9:
        like = _time_like(target, state[8])
    elif target.kind == "V" and state[3] is not None:
        like = _structure_like(target, state[3], state[4])
    own: Any = like.__reduce__()
    version, order, *rest = own[2]
    orders = ("|",) if order == "|" else ("<", ">", "=")
    _need(state[1] in orders and state == (version, state[1], *rest), "numpy.dtype")
    target.__setstate__(state)  # type: ignore[attr-defined]


def _time_like(target: np.dtype[Any], about: Any) -> np.dtype[Any]:
    _need(type(about) is tuple and len(about) == 2 and type(about[1]) is tuple, "numpy.dtype")
    unit, count = about[1][:2]
    _need(unit in _UNITS and type(count) is int and 0 < count < 2**31, "numpy.dtype")
    name = "" if unit == b"generic" else f"[{count}{unit.decode()}]"
    made: np.dtype[Any] = np.dtype(f"{target.kind}8{name}")
    return made


def _structure_like(target: np.dtype[Any], names: Any, fields: Any) -> np.dtype[Any]:
    _need(type(names) is tuple and type(fields) is dict, "numpy.dtype")
    _need(len(names) == len(fields), "numpy.dtype")
    found = [fields.get(name) for name in names]
    _need(all(type(one) is tuple and len(one) == 2 for one in found), "numpy.dtype")
    kinds, offsets = [one[0] for one in found], [one[1] for one in found]
    _need(all(isinstance(kind, np.dtype) and kind.kind in _KINDS for kind in kinds), "numpy.dtype")
    size = target.itemsize
    # Raises for offsets outside of it.
    made: np.dtype[Any] = np.dtype(
        {"names": list(names), "formats": kinds, "offsets": offsets, "itemsize": size}
    )
    return made


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    _need(kind is np.ndarray and shape == (0,) and code in (b"b", "b"), _RAW)
    empty: np.ndarray[Any, Any] = np.ndarray((0,), np.int8)
    return empty


def _build_array(target: np.ndarray[Any, Any], state: Any) -> None:
    _need(type(state) is tuple and len(state) == 5, _RAW)
    version, shape, dtype, fortran, raw = state
    _need(version == 1 and type(shape) is tuple and type(fortran) is bool, _RAW)
    _need(all(type(size) is int and size >= 0 for size in shape) and len(shape) <= 32, _RAW)
    _need(isinstance(dtype, np.dtype) and dtype.kind in _KINDS and type(raw) is bytes, _RAW)
    count = 1
    for size in shape:
        count *= size
    # Items of no bytes would be an array as large as it likes.
    _need(count < 2**62 and (dtype.itemsize > 0 or not count), _RAW)
    _need(count * dtype.itemsize == len(raw), _RAW)
    target.__setstate__(state)


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    _need(isinstance(dtype, np.dtype) and dtype.kind in _KINDS, "numpy._core.multiarray.scalar")
    _need(type(raw) is bytes and len(raw) == dtype.itemsize > 0, "numpy._core.multiarray.scalar")
    return np.frombuffer(raw, dtype)[0]


def _functions() -> dict[str, Allowed]:
    calls: dict[str, Callable[..., Any]] = {
        "_codecs.encode": _encode,
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray.scalar": _scalar,
        "numpy.core.multiarray._reconstruct": _reconstruct,
        "numpy.core.multiarray.scalar": _scalar,
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
        "numpy.dtype": Allowed(np.dtype, _dtype, _build_dtype),
        "numpy.ndarray": Allowed(np.ndarray, None, _build_array),
        "torch.Size": Allowed(torch.Size, _size),
        "torch.device": Allowed(torch.device, _of_numbers(torch.device)),
    }


def _build_ordered_dict(target: Any, state: Any) -> None:
    # Such as the _metadata of a module's state dict.
    _need(type(state) is dict, "OrderedDict")
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
_DEFAULT = {**_functions(), **_classes(), **_values(), **tensor_names()}


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


def _no_call(*_: Any) -> Any:
    raise RefusedError("it makes a device mesh, which talks to other ranks")


def _trusted(value: Any) -> Allowed:
    # torch declares it safe by itself; a new one waits for ranks that do not come. Pickles
    # of meshes make none: they give one its state.
    call = _no_call if value is _MESH else value
    return Allowed(value, call, _build_trusted if isinstance(value, type) else None, trusted=True)


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
    for entry in (*torchs, *users):
        value, name = entry if isinstance(entry, tuple) else (entry, _full_name(entry))
        more[name] = _trusted(value)

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
