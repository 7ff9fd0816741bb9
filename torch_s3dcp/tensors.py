"""Tensors in a pickle: made of memory that is there, and never of more.

What stands for a storage is :class:`Memory`; functions with torch's names make tensors of it,
once they have looked at their arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch.serialization import LoadEndianness

from .interpreter import Allowed, set_attributes
from .limits import Allowance, RefusedError, need

_REBUILD = "torch._utils._rebuild_tensor_v2"


class Memory:
    """The memory of tensors, which only tensors may be made of.

    Saved anew as what it is, a storage would come back as a tensor.
    """

    def __init__(self, flat: torch.Tensor, allowance: Allowance, *, swapped: bool = False) -> None:
        self.flat = flat
        # For tensors that are copies.
        self.allowance = allowance
        # Whether it came in another byte order.
        self.swapped = swapped

    def __reduce__(self) -> Any:
        raise RefusedError("it holds a storage that is no tensor's")


class Records(Protocol):
    """Records of an archive by name; asking for one may read it."""

    def __getitem__(self, name: str, /) -> memoryview: ...

    def __contains__(self, name: str, /) -> bool: ...


def _usual_order() -> str:
    """The byte order of archives that do not say theirs, as ``torch.load`` has it."""
    chosen = torch.serialization.get_default_load_endianness()
    orders = {LoadEndianness.BIG: "big", LoadEndianness.NATIVE: sys.byteorder}
    return "little" if chosen is None else orders.get(chosen, "little")


class Storages:
    """The memory of tensors inside an item, by the ids that its pickle has for it."""

    def __init__(self, records: Records, allowance: Allowance) -> None:
        self._records = records
        self._allowance = allowance
        self._typed: dict[tuple[str, torch.dtype], Memory] = {}
        order = bytes(records["byteorder"]).decode() if "byteorder" in records else _usual_order()
        if order not in ("little", "big"):
            raise ValueError(f"unknown byte order {order[:20]!r}")
        self._swapped = order != sys.byteorder
        self._known: dict[str, torch.Tensor] = {}

    def __call__(self, pid: Any) -> Memory:
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise RefusedError("a persistent id that is no storage")
        _, dtype, key, _, count = pid
        known = isinstance(dtype, torch.dtype) and dtype in _STORED
        if not known or type(key) is not str or type(count) is not int:
            raise RefusedError("a persistent id that is no storage")
        if key not in self._known:
            self._known[key] = self._read(key, dtype)
        flat = self._known[key]
        if len(flat) != count * dtype.itemsize:
            raise ValueError(f"storage {key} has another size than the item says")
        if (key, dtype) not in self._typed:
            typed = Memory(flat.view(dtype), self._allowance, swapped=self._swapped)
            self._typed[key, dtype] = typed
        return self._typed[key, dtype]

    def _read(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        memory = self._records[f"data/{key}"]
        if not memory:
            return torch.empty(0, dtype=torch.uint8, device="cpu")
        own: Any = bytearray(memory) if memory.readonly else memory
        flat = torch.frombuffer(own, dtype=torch.uint8)
        if self._swapped:
            flat.untyped_storage().byteswap(dtype)  # type: ignore[no-untyped-call]
        return flat


def _tensor(
    memory: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    _: Any = None,
    flags: Any = None,
) -> torch.Tensor:
    need(type(memory) is Memory, _REBUILD)
    # Raises for what lies outside of the memory.
    view: torch.Tensor = memory.flat.as_strided(size, stride, offset)
    # What is to be negated or conjugated when it is looked at.
    need(flags is None or (type(flags) is dict and set(flags) <= {"conj", "neg"}), _REBUILD)
    if flags and flags.get("conj"):
        view = view.conj()
    if flags and flags.get("neg"):
        view = torch._neg_view(view)
    return view.requires_grad_(bool(requires_grad))


def _tensor_v3(memory: Any, *rest: Any) -> torch.Tensor:
    need(type(memory) is Memory and len(rest) >= 6, _REBUILD)
    need(isinstance(rest[5], torch.dtype), _REBUILD)
    # Its storage does not say how wide its numbers are, so they are not swapped.
    need(not memory.swapped or rest[5].itemsize == 1, _REBUILD)
    offset, size, stride, grad, _, dtype, *flags = rest
    typed = Memory(memory.flat.view(dtype), memory.allowance)
    return _tensor(typed, offset, size, stride, grad, None, *flags[:1])


def _parameter(data: Any, requires_grad: Any = True, *_: Any) -> torch.nn.Parameter:
    need(isinstance(data, torch.Tensor), "torch._utils._rebuild_parameter")
    return torch.nn.Parameter(data, bool(requires_grad))


def _parameter_with_state(data: Any, grad: Any, _: Any, state: Any) -> torch.nn.Parameter:
    made = _parameter(data, grad)
    _set_state(made, state)
    return made


def _set_state(tensor: torch.Tensor, state: Any) -> None:
    """Attributes that somebody gave a tensor; none that a tensor has by itself."""
    attributes = state[0] if type(state) is tuple and len(state) == 2 else state
    slots = state[1] if type(state) is tuple and len(state) == 2 else None
    need(type(attributes) in (dict, type(None)) and not slots, "torch.Tensor")
    for name in attributes or {}:
        need(type(name) is str and not hasattr(type(tensor), name), "torch.Tensor")
    set_attributes(tensor, attributes)


def _from_type(rebuild: Any, kind: Any, arguments: Any, state: Any) -> torch.Tensor:
    """A tensor of a class that was allowed, or one with attributes."""
    # Functions of this module only: what the names stand for.
    need(any(rebuild is known for known in _CALLS.values()), "torch._tensor._rebuild_from_type_v2")
    need(isinstance(kind, type) and issubclass(kind, torch.Tensor), "torch.Tensor")
    made: torch.Tensor = rebuild(*arguments)
    if type(made) is not kind:
        made = made.as_subclass(kind)
    if kind in (torch.Tensor, torch.nn.Parameter):
        _set_state(made, state)
    elif getattr(kind, "__setstate__", None) is not torch.Tensor.__setstate__:
        restore: Any = made.__setstate__
        restore(state)
    else:
        set_attributes(made, state)
    return made


def _wrapper(kind: Any, *rest: Any) -> torch.Tensor:
    """A tensor without memory, of a class that was allowed."""
    need(isinstance(kind, type) and issubclass(kind, torch.Tensor), "torch.Tensor")
    made: torch.Tensor = torch._utils._rebuild_wrapper_subclass(kind, *rest)  # type: ignore[no-untyped-call]
    return made


_QUANTISED = "torch._utils._rebuild_qtensor"
_QSCHEMES = (torch.per_channel_affine, torch.per_channel_affine_float_qparams)


def _check_parts(*parts: torch.Tensor) -> None:
    """They are gone through: none may be far larger than what there is, on the pickle's word."""
    stored = sum(part.untyped_storage().nbytes() for part in parts)
    for part in parts:
        need(part.numel() * part.itemsize <= max(_EXPANDED, 4 * stored), _SPARSE)


def _quantised(
    memory: Any,
    offset: Any,
    size: Any,
    stride: Any,
    quantiser: Any,
    grad: Any = False,
    _: Any = None,
) -> torch.Tensor:
    numbers = _tensor(memory, offset, size, stride)
    memory.allowance.spend(numbers.nbytes)
    need(type(quantiser) is tuple and len(quantiser) in (3, 4), _QUANTISED)
    scheme, *how = quantiser
    make: Any
    if scheme == torch.per_tensor_affine and len(how) == 2:
        need(type(how[0]) in (int, float) and type(how[1]) is int, _QUANTISED)
        make = torch._make_per_tensor_quantized_tensor
    else:
        need(scheme in _QSCHEMES and len(how) == 3, _QUANTISED)
        scales, zeros, axis = how
        need(type(axis) is int and 0 <= axis < numbers.dim(), _QUANTISED)
        for one in (scales, zeros):
            shape = one.shape if isinstance(one, torch.Tensor) else None
            need(shape == (numbers.shape[axis],), _QUANTISED)
            # They become numbers of 8 bytes.
            memory.allowance.spend(8 * one.numel())
        make = torch._make_per_channel_quantized_tensor
    made: torch.Tensor = make(numbers, *how)
    return made.requires_grad_(bool(grad)) if grad else made


_SPARSE = "torch._utils._rebuild_sparse_tensor"
# Bytes that the parts of a sparse tensor may have beyond what is stored: one value for all.
_EXPANDED = 2**28
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def _sparse(layout: Any, data: Any) -> torch.Tensor:
    need(type(data) is tuple and len(data) in (3, 4), _SPARSE)
    made: torch.Tensor
    *indices, values, size = data if layout is not torch.sparse_coo else data[:3]
    # As torch keeps them: of anything else it would make copies.
    need(type(size) in (tuple, torch.Size), _SPARSE)
    for one in (*indices, values):
        need(isinstance(one, torch.Tensor) and one.layout is torch.strided, _SPARSE)
    _check_parts(*indices, values)
    need(all(one.dtype in (torch.int32, torch.int64) for one in indices), _SPARSE)
    # All indices are checked: others would reach beyond the values.
    if layout is torch.sparse_coo:
        (places,) = indices
        need(places.dtype is torch.int64, _SPARSE)
        known = bool(data[3:] and data[3]) or None
        made = torch.sparse_coo_tensor(
            places, values, size, check_invariants=True, is_coalesced=known
        )
    else:
        need(layout in _COMPRESSED and len(data) == 4, _SPARSE)
        made = torch.sparse_compressed_tensor(*data, layout=layout, check_invariants=True)
    return made


def _meta(dtype: Any, size: Any, stride: Any, grad: Any) -> torch.Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="meta", requires_grad=bool(grad))


# What names stand for, and is called.
_CALLS: dict[str, Any] = {
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    _QUANTISED: _quantised,
    _SPARSE: _sparse,
    _REBUILD: _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
}

# Storages stand for the dtype that their tensors begin with; nobody makes one.
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    # The numbers that quantised tensors are made of.
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
}


_STORED = frozenset(_STORAGES.values()) | {torch.uint8}


def tensor_names() -> Mapping[str, Allowed]:
    """What may be named by a pickle that holds tensors."""
    return {
        **{name: Allowed(call, call) for name, call in _CALLS.items()},
        "torch._tensor._rebuild_from_type_v2": Allowed(_from_type, _from_type),
        "torch.Tensor": Allowed(torch.Tensor),
        "torch.nn.parameter.Parameter": Allowed(torch.nn.Parameter),
        **{f"torch.{name}Storage": Allowed(dtype) for name, dtype in _STORAGES.items()},
        "torch.storage.UntypedStorage": Allowed(torch.uint8),
    }
