"""More of what training states hold: it loads, or following what the error says makes it load."""

from __future__ import annotations

import datetime
import fractions
import importlib
import random
import re
import uuid
import zoneinfo
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, failures, quiet, randn
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from torch_s3dcp.exceptions import InvalidCheckpointError

LOADS: dict[str, Any] = {
    "moment": np.datetime64("2026-01-02T03:04"),
    "step of time": np.timedelta64(5, "s"),
    "steps of ten": np.array([1, 2], "m8[10ms]"),
    "no unit": np.timedelta64(5),
    "no time": np.datetime64("NaT"),
    "moments": np.array(["2026-01-02", "NaT"], "M8[ns]"),
    "structure": np.array([(1, 2.5, b"x")], dtype=[("a", "i4"), ("b", "f8"), ("c", "S3")]),
    "aligned": np.zeros(2, np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"]})),
    "nested": np.zeros(2, dtype=[("a", [("b", ">i2"), ("c", "M8[D]")])]),
    "uuid": uuid.UUID("12345678123456781234567812345678"),
    "uuid of a clock": uuid.UUID(int=2**100 + 5, is_safe=uuid.SafeUUID.unsafe),
    "aligned as in C": np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "state of a generator": np.random.default_rng(5).bit_generator.state,
    "state of a legacy generator": np.random.RandomState(3).get_state(legacy=False),
}


def same(actual: Any, expected: Any) -> bool:
    """Equal in type and, as a pickle of numpy or a repr says it, in value."""
    if isinstance(expected, (np.ndarray, np.generic)):
        alike = actual.dtype == expected.dtype and actual.shape == expected.shape
        return bool(alike and actual.tobytes() == expected.tobytes())
    if isinstance(expected, dict):
        return list(actual) == list(expected) and all(same(actual[k], expected[k]) for k in actual)
    return type(actual) is type(expected) and bool(actual == expected)


@pytest.mark.parametrize("kind", LOADS)
def test_it_loads(memory: Place, kind: str) -> None:
    memory.save({"x": LOADS[kind]}, "run")
    found = memory.load(blank({"x": LOADS[kind]}), "run", safe_globals=())["x"]
    assert same(found, LOADS[kind]), f"{found!r}"


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# How to see that two are the same.
NAMED: dict[str, tuple[Any, Any]] = {
    "fractions.Fraction": (fractions.Fraction(1, 3), lambda value: value),
    "torch._C.Generator": (generator(), lambda value: value.get_state().tolist()),
    "random.Random": (random.Random(3), lambda value: value.getstate()),
    "numpy.random._pickle.__generator_ctor": (
        np.random.default_rng(5),
        lambda value: value.bit_generator.state,
    ),
    "numpy.random._pickle.__randomstate_ctor": (
        np.random.RandomState(3),
        lambda value: str(value.get_state()),
    ),
}


def named(error: BaseException) -> str:
    """What an error says to put into the list."""
    assert type(error) is InvalidCheckpointError
    found = re.search(r"safe_globals=\[\.\.\.\]\).*, with (\S+) in the list", str(error))
    assert found, str(error)
    return found[1]


@pytest.mark.parametrize("kind", NAMED)
def test_following_the_error_makes_it_load(memory: Place, kind: str) -> None:
    value, look = NAMED[kind]
    memory.save({"x": value}, "run")
    allowed: list[tuple[Any, str]] = []
    for _ in range(6):
        try:
            found = memory.load({"x": ""}, "run", safe_globals=allowed)["x"]
            break
        except dcp.api.CheckpointException as failure:
            (error,) = failures(failure)
            name = named(error)
            assert name not in [one for _, one in allowed], str(error)
            module, _, attribute = name.rpartition(".")
            allowed.append((getattr(importlib.import_module(module), attribute), name))
    assert allowed[0][1] == kind
    assert type(found) is type(value)
    assert look(found) == look(value)


ZONED = {
    "zone": zoneinfo.ZoneInfo("UTC"),
    "moment": datetime.datetime(2026, 1, 2, tzinfo=zoneinfo.ZoneInfo("UTC")),
}


@pytest.mark.parametrize("kind", ZONED)
def test_zones_are_made_through_getattr(memory: Place, kind: str) -> None:
    memory.save({"x": ZONED[kind]}, "run")
    with pytest.raises(dcp.api.CheckpointException) as caught:
        memory.load({"x": ""}, "run", safe_globals=())
    (error,) = failures(caught.value)
    assert "allow it with S3StorageReader(..., safe_globals=" in str(error)
    assert "zoneinfo.ZoneInfo" in str(error)
    allowed = [zoneinfo.ZoneInfo]
    assert memory.load({"x": ""}, "run", safe_globals=allowed)["x"] == ZONED[kind]
    assert memory.load({"x": ""}, "run", trust_checkpoint=True)["x"] == ZONED[kind]


def channelled(zeros: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    scales = torch.tensor([0.1, 0.2, 0.3, 0.4])
    return torch.quantize_per_channel(randn(4, 4), scales, zeros, 0, dtype)


def odd_tensors() -> dict[str, torch.Tensor]:
    with quiet():
        return {
            "coo": torch.eye(3).to_sparse(),
            "uncoalesced": torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,)),
            "one value": torch.sparse_coo_tensor([[0, 2]], torch.ones(1).expand(2), (3,)),
            "csr": torch.eye(3).to_sparse_csr(),
            "csr of one value": torch.sparse_csr_tensor(
                torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(1).expand(2), (2, 2)
            ),
            "csc": torch.eye(3).to_sparse_csc(),
            "bsr": torch.eye(4).to_sparse_bsr((2, 2)),
            "quantised": torch.quantize_per_tensor(randn(4, 4), 0.1, 3, torch.qint8),
            "quantised, expanded": torch.quantize_per_tensor(
                randn(1, 4), 0.1, 3, torch.qint8
            ).expand(3, 4),
            "per channel": channelled(torch.zeros(4).long(), torch.qint8),
            "real zeros": channelled(torch.ones(4), torch.quint8),
        }


@pytest.mark.parametrize("kind", odd_tensors())
def test_sparse_and_quantised_tensors_in_blobs(memory: Place, kind: str) -> None:
    value = odd_tensors()[kind]
    # A set is no container for planners: all of it is one blob.
    memory.save({"x": frozenset([value])}, "run")
    (found,) = memory.load({"x": ""}, "run", safe_globals=())["x"]
    assert (found.layout, found.dtype, found.shape) == (value.layout, value.dtype, value.shape)
    if value.is_quantized:
        assert found.qscheme() == value.qscheme()
        assert torch.equal(found.int_repr(), value.int_repr())
        assert torch.equal(found.dequantize(), value.dequantize())
    else:
        assert torch.equal(found.to_dense(), value.to_dense())
        assert found.layout is not torch.sparse_coo or found.is_coalesced() == value.is_coalesced()


def trained(kind: type[torch.optim.Optimizer]) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = torch.nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = model(torch.ones(4, 3)).square().sum()
        value.backward()
        return value

    for _ in range(2):
        optimizer.step(loss)  # type: ignore[arg-type]
    return model, optimizer


@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.Adam, torch.optim.RMSprop])
def test_optimizers(memory: Place, kind: type[torch.optim.Optimizer]) -> None:
    model, optimizer = trained(kind)
    state = {"model": get_model_state_dict(model), "optimizer": optimizer.state_dict()}
    state["both"] = get_state_dict(model, optimizer)[1]
    memory.save(state, "run")
    assert_same(memory.load(blank(state), "run", safe_globals=()), state)


def test_lbfgs(memory: Place, tmp_path: Any) -> None:
    state = {"optimizer": trained(torch.optim.LBFGS)[1].state_dict()}
    memory.save(state, "run")
    theirs = blank(state)
    with quiet():
        dcp.load(theirs, storage_reader=dcp.FileSystemReader(memory.copy_down("run", tmp_path)))
    found = memory.load(blank(state), "run", safe_globals=())
    # Planners flatten its lists, and spell the key of a parameter anew; torch's reader does so too.
    assert_same(found, theirs)
    assert_same(found["optimizer"]["state"][0]["d"], state["optimizer"]["state"][0]["d"])


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_distributed_tensors(memory: Place, tmp_path: Any) -> None:
    mesh = init_device_mesh("cpu", (1,))
    spec = ChunkShardingSpec(dim=0, placements=["rank:0/cpu"])

    def state(value: float) -> dict[str, Any]:
        with quiet():
            shards = sharded_tensor.full(spec, (4, 3), value)
        spread = distribute_tensor(torch.full((6,), value), mesh, [Shard(0)])
        return {"dtensor": spread, "sharded": shards}

    memory.save(state(2.5), "ours")
    with quiet():
        dcp.save(state(2.5), storage_writer=dcp.FileSystemWriter(tmp_path))
    memory.copy_up(tmp_path, "theirs")
    for path in ("ours", "theirs"):
        found = memory.load(state(0.0), path, safe_globals=())
        assert isinstance(found["dtensor"], DTensor)
        assert found["dtensor"].full_tensor().tolist() == [2.5] * 6
        (shard,) = found["sharded"].local_shards()
        assert shard.tensor.tolist() == [[2.5] * 3] * 4
