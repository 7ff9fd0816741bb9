"""What checkpoints hold loads without running code, or the error says what to allow."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import io
import pathlib
import random
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.dcp import Place, RunInfo, assert_same, blank, everything, failures, quiet
from support.transports import Call, Tap

from torch_s3dcp import S3StorageReader
from torch_s3dcp.exceptions import ConfigurationError, IntegrityError, InvalidCheckpointError


class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    left: int
    right: str


class Own:
    def __init__(self) -> None:
        self.values = [1, 2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self.values == other.values

    __hash__ = None  # type: ignore[assignment]


def numbers() -> np.random.Generator:
    return np.random.default_rng(5)


LOADS: dict[str, Any] = {
    "none": None,
    "true": True,
    "big": -(2**90),
    "text": "größe",
    "bytes": b"a\0b",
    "no bytes": b"",
    "bytearray": bytearray(b"xyz"),
    "set": {1, 2},
    "frozenset": frozenset({"a"}),
    "complex": 1j,
    "range": range(3),
    "slice": slice(1, 5),
    "ordered": collections.OrderedDict(b=1, a=2),
    "counter": collections.Counter("aab"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2], maxlen=3),
    "datetime": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.timezone.utc),
    "timedelta": datetime.timedelta(1, 2),
    "decimal": decimal.Decimal("1.50"),
    "path": pathlib.PurePosixPath("/a/b"),
    "namespace": argparse.Namespace(lr=0.1, layers=[1]),
    "simple": types.SimpleNamespace(x=1),
    "dtype": torch.bfloat16,
    "size": torch.Size([2, 3]),
    "device": torch.device("cpu"),
    "layout": torch.strided,
    "numpy dtype": np.dtype("f4"),
    "numpy scalar": np.float32(1.5),
    "numpy bool": np.bool_(True),
    "python rng": random.Random(3).getstate(),
    "numpy rng": numbers().bit_generator.state,
    "scaler": torch.amp.GradScaler("cpu", enabled=True).state_dict(),
    "scheduler": torch.optim.lr_scheduler.LambdaLR(
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1), lambda step: 0.9
    ).state_dict(),
    "dataloader": {
        "_snapshot": {"_snapshot_step": 3, "_worker_snapshots": {"worker_0": {"rng": (1, 2)}}},
        "_steps_since_snapshot": 0,
        "_iterator_finished": False,
    },
}


def saved_by(place: Place, writer: str, state: dict[str, Any], folder: pathlib.Path) -> None:
    if writer == "ours":
        place.save(state, "run")
    else:
        with quiet():
            dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
        place.copy_up(folder, "run")


@pytest.mark.parametrize("writer", ["ours", "torch's"])
def test_what_checkpoints_hold_loads(memory: Place, writer: str, tmp_path: pathlib.Path) -> None:
    saved_by(memory, writer, LOADS, tmp_path)
    loaded = memory.load(blank(LOADS), "run", safe_globals=())
    assert_same(loaded, LOADS)


ARRAYS = {
    "ints": np.arange(6).reshape(2, 3),
    "empty": np.zeros((0, 3)),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "text": np.array(["a", "bb"]),
    "complex": np.ones(2, np.complex64),
    "legacy rng": np.random.RandomState(3).get_state()[1],
}


def test_arrays_load(memory: Place) -> None:
    memory.save(ARRAYS, "run")
    loaded = memory.load(dict.fromkeys(ARRAYS, ""), "run", safe_globals=())
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype


def test_tensors_inside_of_other_things(memory: Place) -> None:
    shared = torch.arange(6.0)
    value = argparse.Namespace(a=shared, b=shared[2:4], half=torch.ones(2).bfloat16())
    value.tiny = torch.ones(3).to(torch.float8_e4m3fn)
    memory.save({"x": value}, "run")
    found = memory.load({"x": ""}, "run", safe_globals=())["x"]
    for name in ("a", "b", "half", "tiny"):
        assert_same(getattr(found, name), getattr(value, name), name)
    assert found.a.untyped_storage().data_ptr() == found.b.untyped_storage().data_ptr()


@pytest.mark.parametrize("writer", ["ours", "torch's"])
def test_tensors_of_every_kind_and_optimizers(
    memory: Place, writer: str, tmp_path: pathlib.Path
) -> None:
    state = everything()
    saved_by(memory, writer, state, tmp_path)
    assert_same(memory.load(blank(state), "run", safe_globals=[RunInfo]), state)


NAMED: dict[str, tuple[Any, str]] = {
    "dataclass": (RunInfo(1, "x"), "support.dcp.RunInfo"),
    "enum": (Colour.RED, f"{__name__}.Colour"),
    "namedtuple": (Pair(1, "x"), f"{__name__}.Pair"),
    "own": (Own(), f"{__name__}.Own"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_other_types_are_named_and_load_once_allowed(memory: Place, kind: str) -> None:
    value, name = NAMED[kind]
    memory.save({"x": value}, "run")
    with pytest.raises(dcp.api.CheckpointException) as caught:
        memory.load({"x": ""}, "run", safe_globals=())
    (error,) = failures(caught.value)
    assert type(error) is InvalidCheckpointError
    for said in (name, "safe_globals=[", "trust_checkpoint=True", "item 'x'"):
        assert said in str(error)
    expected = {"x": value}
    assert memory.load({"x": ""}, "run", safe_globals=[type(value)]) == expected
    assert memory.load({"x": ""}, "run", safe_globals=[(type(value), name)]) == expected
    assert memory.load({"x": ""}, "run", safe_globals=(), trust_checkpoint=True) == expected
    with torch.serialization.safe_globals([type(value)]):
        assert memory.load({"x": ""}, "run", safe_globals=()) == expected


class Plain(dcp.DefaultSavePlanner):
    """Saves blobs in a format of its own."""

    def transform_object(self, write_item: Any, object: Any) -> Any:
        return io.BytesIO(b"own format")


class Kept(dcp.DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        self.state_dict[read_item.dest_index.fqn] = value.read()
        self.given = value.getvalue()


def test_a_format_of_a_planners_own_must_be_trusted(memory: Place) -> None:
    memory.save({"x": 1}, "run", Plain())
    with pytest.raises(dcp.api.CheckpointException, match="trust_checkpoint=True"):
        memory.load({"x": 0}, "run", Kept())
    planner = Kept()
    memory.load({"x": 0}, "run", planner, trust_checkpoint=True)
    assert planner.given == b"own format"


@pytest.mark.parametrize("wrong", ["torch.Tensor", [1], [("x", "y")], 5, torch.Tensor])
def test_a_wrong_allow_list(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="safe_globals"):
        S3StorageReader("s3://bucket/x", safe_globals=wrong)
    with pytest.raises(ConfigurationError, match="trust_checkpoint"):
        S3StorageReader("s3://bucket/x", trust_checkpoint=wrong)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_damaged_metadata_is_fetched_again(memory: Place, times: int) -> None:
    memory.save({"x": 1}, "run")
    whole = memory.read("run/.metadata")
    damaged = whole.replace(b"state_dict_metadata", b"state_dict_metadatb", 1)
    assert damaged != whole
    asked = []

    def damage(call: Call) -> None:
        if call.operation == "get" and call.key.endswith(".metadata"):
            asked.append(call)
            content = damaged if len(asked) <= times else whole
            memory.transport.put("bucket", "run/.metadata", content)

    place = memory.over(Tap(memory.transport, before=damage))
    if times < 3:
        assert place.load({"x": 0}, "run") == {"x": 1}
        assert len(asked) == times + 1
        return
    with pytest.raises(dcp.api.CheckpointException) as caught:
        place.load({"x": 0}, "run")
    (error,) = failures(caught.value)
    assert type(error) is IntegrityError
    assert "s3://bucket/run/.metadata" in str(error)
