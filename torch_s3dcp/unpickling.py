"""The value in an archive of ``torch.save``, without running code of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .allowed import SafeGlobal, allowed_names
from .interpreter import Interpreter
from .limits import Allowance, RefusedError
from .records import PICKLE
from .tensors import Records, Storages

#: What to do about items that are refused.
TRUSTED = "pass trust_checkpoint=True to the storage reader, which lets the bucket run code"


def pickle_in(records: Records) -> bytes:
    """The archive's pickle.

    Raises:
        RefusedError: The archive is one of TorchScript, which holds code.
        ValueError: There is none.
    """
    if "constants.pkl" in records:
        raise RefusedError("it is a TorchScript archive, which holds code")
    return bytes(records[PICKLE])


def value_of(
    pickled: bytes, records: Records, allowance: Allowance, safe_globals: Sequence[SafeGlobal]
) -> Any:
    """What a pickle makes. Its storages take no more memory than the archive has bytes.

    Args:
        pickled: A pickle whose sizes were looked at, see :func:`pickles.check_sizes`.
        records: Those of the archive that it is in.
        allowance: What it may copy.
        safe_globals: What it may name beyond ``allowed``.

    Raises:
        RefusedError: It wants something that is not allowed. Damaged ones may raise nearly
            anything.
    """
    storages = Storages(records, allowance)
    return Interpreter(allowed_names(safe_globals), allowance, storages).load(pickled)
