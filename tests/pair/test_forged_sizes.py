"""Sizes that a checkpoint's metadata only claims: no memory is taken on its word."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import pytest
from support.dcp import READERS, Place, blank, failures, randn
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp.exceptions import S3DCPError

STATE = {"w": randn(300, 200).t(), "blob": "text" * 1000}
GIB = 1024**3


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("name", STATE)
@pytest.mark.parametrize("reader", READERS)
def test_an_item_longer_than_its_object(
    memory: Place, reader: str, name: str, trusted: bool
) -> None:
    metadata: Any = memory.save(STATE, "run")
    (index,) = (index for index in metadata.storage_data if index.fqn == name)
    metadata.storage_data[index].length = 40 * GIB
    forged = pickle.dumps(metadata)
    memory.transport.put(memory.bucket, "run/.metadata", forged)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointException) as caught:
            memory.load(
                {name: blank(STATE[name])},
                "run",
                reader_constructor=reader,
                trust_checkpoint=trusted,
            )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (error,) = failures(caught.value)
    assert isinstance(error, S3DCPError)
    assert peak < 64 * 1024**2
    assert (error.tensor, error.bucket) == (name, memory.bucket)
