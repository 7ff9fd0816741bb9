"""Saves of tensors on a device: through pinned blocks, by copies on a stream of their own.

Each test runs on a model of a device, which every machine has, and on CUDA where there is one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, quiet, randn
from support.devices import Cuda, Lazy
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import S3ClientConfig, S3StorageWriter
from torch_s3dcp.exceptions import EndpointError
from torch_s3dcp.testing.wrappers import Fault, FaultTransport

MIB = 2**20
LIMIT = 16 * MIB


@dataclass(frozen=True)
class Known:
    """Another transport, whose uploads run in threads that know the device."""

    inner: Any
    device: Lazy | Cuda

    def upload(self, *args: Any, **kwargs: Any) -> Any:
        with self.device.known():
            return self.inner.upload(*args, **kwargs)

    def compose(self, *args: Any, **kwargs: Any) -> Any:
        with self.device.known():
            return self.inner.compose(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def save(place: Place, device: Lazy | Cuda, state: dict[str, Any], **options: Any) -> None:
    writer = S3StorageWriter(
        place.url("run"),
        transport=Known(place.transport, device),
        s3client_config=S3ClientConfig(memory_budget=LIMIT),
        **options,
    )
    with quiet():
        dcp.save(state, storage_writer=writer)


def values() -> dict[str, torch.Tensor]:
    """Tensors of more than a block, of less, and of few bytes."""
    return {
        "large": randn(5 * MIB + 3),
        "transposed": randn(1500, 1000, seed=1).t(),
        "channels last": randn(4, 8, 100, 100, seed=2).to(memory_format=torch.channels_last),
        "bfloat16": randn(3 * MIB, seed=3, dtype=torch.bfloat16),
        "bool": randn(MIB, seed=4) > 0,
        "complex": torch.complex(randn(MIB, seed=5), randn(MIB, seed=6)),
        "small": randn(3, 5, seed=7),
        "scalar": torch.tensor(2.5),
    }


def stored(value: torch.Tensor) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def check(place: Place, expected: dict[str, torch.Tensor]) -> None:
    """The bytes of each item are those of torch's own writer."""
    metadata = place.reader("run").read_metadata()
    for index, info in metadata.storage_data.items():
        data = place.read(f"run/{info.relative_path}")[info.offset : info.offset + info.length]
        assert data == stored(expected[index.fqn]), index.fqn


def test_the_bytes_are_those_of_torch(memory: Place, device: Lazy | Cuda) -> None:
    expected = values()
    save(memory, device, {name: device.put(value) for name, value in expected.items()})
    check(memory, expected)
    assert not isinstance(device, Lazy) or device.module.copies > 0


def test_several_files(memory: Place, device: Lazy | Cuda) -> None:
    expected = values()
    state = {name: device.put(value) for name, value in expected.items()}
    save(memory, device, state, thread_count=3)
    check(memory, expected)
    assert len(memory.listing("run/")) == 4


@pytest.mark.server
def test_parts_on_a_server(on_seaweed: Place, device: Lazy | Cuda) -> None:
    expected = {f"w{n}": randn(6 * MIB + n, seed=n) for n in range(2)}
    save(on_seaweed, device, {name: device.put(value) for name, value in expected.items()})
    check(on_seaweed, expected)
    loaded = on_seaweed.load({name: torch.zeros_like(v) for name, v in expected.items()}, "run")
    assert_same(loaded, expected)
    if isinstance(device, Lazy):
        assert device.module.most_pinned <= LIMIT + 8 * MIB


def test_work_that_was_queued_before_goes_first(memory: Place, device: Lazy | Cuda) -> None:
    with device.module.stream(device.module.Stream(device=device.device)):
        state = {f"w{n}": device.put(torch.ones(3 * MIB)) for n in range(3)}
        device.keep_busy()
        for value in state.values():
            value.add_(1)
        save(memory, device, state, thread_count=2)
        for value in state.values():
            value.fill_(9)
    check(memory, {name: torch.full((3 * MIB,), 2.0) for name in state})


def test_a_delta_of_what_is_queued_to_change(memory: Place, device: Lazy | Cuda) -> None:
    state = {f"w{n}": device.put(randn(3 * MIB, seed=n)) for n in range(4)}
    expected = {name: randn(3 * MIB, seed=n) for n, name in enumerate(state)}
    save(memory, device, state)
    with device.module.stream(device.module.Stream(device=device.device)):
        device.keep_busy()
        state["w1"].fill_(7)
        save(memory, device, state, delta_from=memory.url("run"))
        for value in state.values():
            value.fill_(9)
    check(memory, {**expected, "w1": torch.full((3 * MIB,), 7.0)})


def test_after_a_failure_no_copy_is_under_way(memory: Place, device: Lazy | Cuda) -> None:
    state = {f"w{n}": device.put(randn(3 * MIB, seed=n)) for n in range(3)}
    broken = memory.over(
        FaultTransport(memory.transport, [Fault("upload", error=EndpointError("gone"))])
    )
    with pytest.raises(CheckpointException):
        save(broken, device, state, thread_count=2)
    if isinstance(device, Lazy):
        copying = [s for s in device.module.streams if s is not device.module.current]
        assert not any(stream.queue for stream in copying)
    assert memory.listing() == []


def test_a_planner_that_fails_midway(memory: Place, device: Lazy | Cuda) -> None:
    class Fails(dcp.DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            if write_item.index.fqn == "w2":
                raise OSError("planned")
            return super().resolve_data(write_item)

    state = {f"w{n}": device.put(randn(3 * MIB, seed=n)) for n in range(3)}
    writer = S3StorageWriter(memory.url("run"), transport=Known(memory.transport, device))
    with quiet(), pytest.raises(CheckpointException, match="planned"):
        dcp.save(state, storage_writer=writer, planner=Fails())
    assert memory.listing() == []
