"""Arrays and numbers of numpy in a pickle: made of bytes that are there, and never of more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .interpreter import Allowed
from .limits import need

# Booleans, integers, floats, complex numbers, times, byte strings, text, structures of these: no
# objects.
_KINDS = "biufcmMSUV"
_UNITS = frozenset(b"Y M W D h m s ms us ns ps fs as generic".split())
_RAW = "numpy.ndarray"


def _dtype(code: Any, align: Any = False, copy: Any = True) -> np.dtype[Any]:
    need(type(code) is str and code[:1] in _KINDS and code[1:].isdigit(), "numpy.dtype")
    # A copy: the state that follows would change the one dtype that all arrays share.
    made: np.dtype[Any] = np.dtype(code, False, True)
    return made


def _build_dtype(target: np.dtype[Any], state: Any) -> None:
    need(type(state) is tuple and len(state) in (8, 9), "numpy.dtype")
    # A state that it may have, in any byte order; others make numpy read where nothing is.
    like = target
    if target.kind in "mM" and len(state) == 9:
        like = _time_like(target, state[8])
    elif target.kind == "V" and state[3] is not None:
        like = _structure_like(target, state[3], state[4], aligned=state[6] != 1)
    own: Any = like.__reduce__()
    version, order, *rest = own[2]
    orders = ("|",) if order == "|" else ("<", ">", "=")
    need(state[1] in orders and state == (version, state[1], *rest), "numpy.dtype")
    target.__setstate__(state)  # type: ignore[attr-defined]


def _time_like(target: np.dtype[Any], about: Any) -> np.dtype[Any]:
    need(type(about) is tuple and len(about) == 2 and type(about[1]) is tuple, "numpy.dtype")
    unit, count = about[1][:2]
    need(unit in _UNITS and type(count) is int and 0 < count < 2**31, "numpy.dtype")
    name = "" if unit == b"generic" else f"[{count}{unit.decode()}]"
    made: np.dtype[Any] = np.dtype(f"{target.kind}8{name}")
    return made


def _structure_like(
    target: np.dtype[Any], names: Any, fields: Any, *, aligned: bool
) -> np.dtype[Any]:
    need(type(names) is tuple and type(fields) is dict, "numpy.dtype")
    need(len(names) == len(fields), "numpy.dtype")
    found = [fields.get(name) for name in names]
    need(all(type(one) is tuple and len(one) == 2 for one in found), "numpy.dtype")
    kinds, offsets = [one[0] for one in found], [one[1] for one in found]
    need(all(isinstance(kind, np.dtype) and kind.kind in _KINDS for kind in kinds), "numpy.dtype")
    size = target.itemsize
    # Raises for offsets outside of it.
    made: np.dtype[Any] = np.dtype(
        {"names": list(names), "formats": kinds, "offsets": offsets, "itemsize": size}, aligned
    )
    return made


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    need(kind is np.ndarray and shape == (0,) and code in (b"b", "b"), _RAW)
    empty: np.ndarray[Any, Any] = np.ndarray((0,), np.int8)
    return empty


def _build_array(target: np.ndarray[Any, Any], state: Any) -> None:
    need(type(state) is tuple and len(state) == 5, _RAW)
    version, shape, dtype, fortran, raw = state
    need(version == 1 and type(shape) is tuple and type(fortran) is bool, _RAW)
    need(all(type(size) is int and size >= 0 for size in shape) and len(shape) <= 32, _RAW)
    need(isinstance(dtype, np.dtype) and dtype.kind in _KINDS and type(raw) is bytes, _RAW)
    count = 1
    for size in shape:
        count *= size
    # Items of no bytes would be an array as large as it likes.
    need(count < 2**62 and (dtype.itemsize > 0 or not count), _RAW)
    need(count * dtype.itemsize == len(raw), _RAW)
    target.__setstate__(state)


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    need(isinstance(dtype, np.dtype) and dtype.kind in _KINDS, "numpy._core.multiarray.scalar")
    need(type(raw) is bytes and len(raw) == dtype.itemsize > 0, "numpy._core.multiarray.scalar")
    return np.frombuffer(raw, dtype)[0]


def array_names() -> Mapping[str, Allowed]:
    """What may be named by a pickle that holds arrays."""
    calls: dict[str, Callable[..., Any]] = {"_reconstruct": _reconstruct, "scalar": _scalar}
    return {
        **{
            f"numpy.{core}.multiarray.{name}": Allowed(call, call)
            for core in ("_core", "core")
            for name, call in calls.items()
        },
        "numpy.dtype": Allowed(np.dtype, _dtype, _build_dtype),
        "numpy.ndarray": Allowed(np.ndarray, None, _build_array),
    }
