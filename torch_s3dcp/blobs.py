"""Items that are not tensors: looked at before a planner decodes them.

A planner decodes an item with ``torch.load(weights_only=False)``, which does what the bytes
say. It is therefore never given bytes from the bucket, but new ones:

* A pickle that names nothing and makes no tuples nor large numbers, which may be keys that take
  for ever to hash or compare, holds numbers, text and containers. It is put into a new archive.
* Any other is carried out by ``interpreter``, and what came of it is saved anew.

So nothing depends on whether two programs read the same bytes in the same way.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch

from .allowed import SafeGlobal
from .arrays import array_names
from .exceptions import InvalidCheckpointError
from .limits import Allowance, RefusedError, TooMuchError
from .pickles import look_through
from .records import archive_of, is_archive, read_records
from .tensors import tensor_names
from .unpickling import TRUSTED, pickle_in, value_of

_TRUST = f"or {TRUSTED}"


def vetted(data: bytes, safe_globals: Sequence[SafeGlobal] = ()) -> bytes:
    """Bytes that a planner may decode in any way, with the same value. Runs no code of ``data``.

    Args:
        data: An archive of ``torch.save``.
        safe_globals: What it may name beyond ``allowed``.

    Raises:
        InvalidCheckpointError: It is damaged, or names what is not allowed.
    """
    if not is_archive(memoryview(data)):
        raise InvalidCheckpointError(
            "the stored item cannot be decoded: its bytes are not an archive of torch.save; if "
            f"the planner that saved it has a format of its own: trust the checkpoint, {_TRUST}"
        )
    try:
        return _vetted(data, safe_globals)
    except RefusedError as error:
        raise InvalidCheckpointError(_advice(error)) from error
    except RecursionError as error:
        raise InvalidCheckpointError("the stored item is nested too deeply") from error
    except Exception as error:
        # Damaged bytes may raise nearly anything.
        raise InvalidCheckpointError(
            f"the stored item cannot be decoded: {type(error).__name__}: {error}"
        ) from error


def _vetted(data: bytes, safe_globals: Sequence[SafeGlobal]) -> bytes:
    records = read_records(memoryview(data))
    pickled = pickle_in(records)
    look = look_through(pickled)
    if not look.odd_keys and _is_plain(pickled):
        return archive_of(pickled)
    allowance = Allowance(len(data))
    value = value_of(pickled, records, allowance, safe_globals)
    if look.large_numbers:
        _Rehearsal(allowance).dump(value)
    output = io.BytesIO()
    torch.save(value, output)
    return output.getvalue()


class _Rehearsal(pickle.Pickler):
    """Counts what a value takes as a pickle, without keeping it.

    Numbers are not remembered in pickles: a large one is written each time that it is met. All
    else that takes much is written once, or was counted when it was copied.
    """

    def __init__(self, allowance: Allowance) -> None:
        # From protocol 4 on, what is written leaves in frames of 64 KiB.
        super().__init__(_Counted(allowance), 4)

    def persistent_id(self, value: Any) -> Any:
        kinds = (torch.UntypedStorage, torch.storage.TypedStorage)
        return "storage" if isinstance(value, kinds) else None


class _Counted:
    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance

    def write(self, data: bytes) -> int:
        self._allowance.spend(len(data))
        return len(data)


def _is_plain(pickled: bytes) -> bool:
    """Whether a pickle names nothing: then there is nothing that could be called."""
    try:
        _Plain(io.BytesIO(pickled)).load()
    except _NotPlainError:
        return False
    return True


class _NotPlainError(Exception):
    """The pickle names something."""


class _Plain(pickle.Unpickler):
    """Stops at the first name."""

    def find_class(self, module: str, name: str) -> Any:
        raise _NotPlainError

    def persistent_load(self, pid: Any) -> Any:
        raise _NotPlainError


# To allow one of these is to allow all: they call or import whatever they are told to.
_ALL_POWERFUL = frozenset(
    {
        *("builtins", "sys", "types", "os", "posix", "nt", "subprocess", "pty", "shutil", "socket"),
        *("importlib", "pkgutil", "runpy", "zipimport", "inspect", "operator", "functools"),
        *("pickle", "marshal", "ctypes", "code", "codeop", "pdb", "timeit", "webbrowser"),
        *("asyncio", "threading", "multiprocessing", "logging", "unittest"),
    }
)


def _advice(error: RefusedError) -> str:
    if isinstance(error, TooMuchError):
        return f"the stored item was not decoded: {error}; if you trust the checkpoint, {TRUSTED}"
    said = f"the stored item was not decoded: {error}, and that could run code"
    module = (error.name or "").partition(".")[0]
    # What is known already is done in this way, whoever else allows it.
    known = error.name in tensor_names() or error.name in array_names()
    if error.name is None or module in _ALL_POWERFUL or known:
        return f"{said}; if you trust the checkpoint, {TRUSTED}"
    return (
        f"{said}; if you trust it, allow it with S3StorageReader(..., safe_globals=[...]) or "
        f"torch.serialization.add_safe_globals([...]), with {error.name} in the list, {_TRUST}"
    )
