"""Answers that are cut short and agree with themselves: the object looks smaller than it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import (
    S3ClientConfig,
    S3Credentials,
    S3StorageReader,
    S3StorageWriter,
    available_readers,
)
from torch_s3dcp.exceptions import IntegrityError, TruncatedObjectError, WrongRangeError
from torch_s3dcp.testing import FaultProxy, faults

STATE = {"a": torch.arange(75_000), "b": torch.arange(500), "step": 7}


@dataclass
class Saved:
    path: str
    proxy: FaultProxy
    config: S3ClientConfig

    def load(self, reader: str) -> dict[str, Any]:
        state: dict[str, Any] = {"a": torch.zeros_like(STATE["a"]), "step": 0}
        state["b"] = torch.zeros_like(STATE["b"])
        storage = S3StorageReader(self.path, s3client_config=self.config, reader_constructor=reader)
        dcp.load(state, storage_reader=storage, no_dist=True)
        return state


@pytest.fixture
def saved(seaweed: Any, seaweed_bucket: str) -> Iterator[Saved]:
    path = f"s3://{seaweed_bucket}/run"
    with FaultProxy(seaweed) as proxy:
        config = S3ClientConfig(
            endpoint_url=proxy.endpoint_url,
            force_path_style=True,
            credentials=S3Credentials(seaweed.access_key, seaweed.secret_key),
            pause_factor=0.1,
        )
        writer = S3StorageWriter(path, s3client_config=config)
        dcp.save(STATE, storage_writer=writer, no_dist=True)
        yield Saved(path, proxy, config)


@pytest.mark.parametrize("by", [1, 3000, 450_000, None])
@pytest.mark.parametrize("reader", available_readers())
def test_one_short_answer_is_survived(saved: Saved, reader: str, by: int | None) -> None:
    saved.proxy.add(faults.Shorten(by), operation="GetObject", key="*.distcp", count=1)
    state = saved.load(reader)
    assert torch.equal(state["a"], STATE["a"])
    assert torch.equal(state["b"], STATE["b"])
    assert state["step"] == 7
    assert any(entry.fault for entry in saved.proxy.log)


@pytest.mark.parametrize("reader", available_readers())
def test_answers_that_are_always_short_are_a_typed_error(saved: Saved, reader: str) -> None:
    saved.proxy.add(faults.Shorten(3000), operation="GetObject", key="*.distcp")
    with pytest.raises(CheckpointException) as raised:
        saved.load(reader)
    ((error, _),) = raised.value.failures.values()
    # The last: the transport compared what it took for the whole object.
    assert isinstance(error, (TruncatedObjectError, WrongRangeError, IntegrityError))
    assert error.key is not None
    assert error.key.endswith(".distcp")
