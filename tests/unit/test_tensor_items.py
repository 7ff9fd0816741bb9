"""Stored tensors that are not what they seem: no memory, no time, no other bytes on their word."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import pytest
import torch

from torch_s3dcp.blobs import vetted
from torch_s3dcp.decoding import load_tensor
from torch_s3dcp.exceptions import InvalidCheckpointError


def changed(value: Any, record: str, content: bytes) -> bytes:
    """An archive of ``torch.save`` with another content of one record."""
    saved, made = io.BytesIO(), io.BytesIO()
    torch.save(value, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(record) else old.read(name))
    return made.getvalue()


class Rebuilt:
    """Pickles as a call of one of torch's functions."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.made = call, arguments

    def __reduce__(self) -> Any:
        return self.made


def archive(value: Any, data: bytes) -> bytes:
    """An archive with one storage, of bytes, whose pickle is that of a value."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, one: Any) -> Any:
            return one if type(one) is tuple and one[:1] == ("storage",) else None

    output = io.BytesIO()
    Pickler(output, 2).dump(value)
    with io.BytesIO() as made:
        with zipfile.ZipFile(made, "w") as new:
            new.writestr("archive/data.pkl", output.getvalue())
            new.writestr("archive/data/0", data)
            new.writestr("archive/version", b"3\n")
        return made.getvalue()


@pytest.mark.parametrize("order", [b"littla", b"LITTLE", b""])
def test_an_unknown_byte_order_is_refused(order: bytes) -> None:
    with pytest.raises(InvalidCheckpointError, match="byte order"):
        load_tensor(io.BytesIO(changed(torch.arange(4.0), "byteorder", order)), (), trusted=False)


def test_the_other_byte_order_is_that_of_blobs_too() -> None:
    values = torch.tensor([1.0, 2.0])
    swapped = bytes(values.view(torch.uint8).view(2, 4).flip(1).flatten().tolist())
    saved = changed((values, 1), "data/0", swapped)
    with (
        zipfile.ZipFile(io.BytesIO(saved)) as old,
        zipfile.ZipFile(made := io.BytesIO(), "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    found, one = torch.load(io.BytesIO(vetted(made.getvalue())), weights_only=True)
    assert torch.equal(found, values)
    assert one == 1


def test_no_element_is_copied_twice() -> None:
    storage = ("storage", torch.QInt8Storage, "0", "cpu", 16)
    how = (torch.per_tensor_affine, 1.0, 0)
    call = Rebuilt(torch._utils._rebuild_qtensor, storage, 0, (2**34,), (0,), how, False, {})
    with pytest.raises(InvalidCheckpointError):
        load_tensor(io.BytesIO(archive(call, bytes(16))), (), trusted=False)


@pytest.mark.timeout(20)
def test_no_index_is_looked_at_twice() -> None:
    storage = ("storage", torch.LongStorage, "0", "cpu", 2)
    rebuild = torch._utils._rebuild_tensor_v2
    indices = Rebuilt(rebuild, storage, 0, (1, 2**40), (0, 0), False, {})
    values = Rebuilt(rebuild, storage, 0, (2**40,), (0,), False, {})
    data = (indices, values, torch.Size([4]))
    call = Rebuilt(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, data)
    with pytest.raises(InvalidCheckpointError):
        load_tensor(io.BytesIO(archive(call, bytes(16))), (), trusted=False)


def test_what_torch_calls_safe_does_not_replace_what_is_done_here() -> None:
    saved = io.BytesIO()
    torch.save(torch.arange(4.0), saved)
    with torch.serialization.safe_globals([torch.FloatStorage, torch._utils._rebuild_tensor_v2]):
        loaded = load_tensor(io.BytesIO(saved.getvalue()), (), trusted=False)
    assert torch.equal(loaded, torch.arange(4.0))
