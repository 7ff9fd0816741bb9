"""An object is replaced while a load asks again for bytes that arrived damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from support.dcp import READERS, Place, assert_same, blank, failures, quiet, randn
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp.exceptions import ObjectChangedError
from torch_s3dcp.testing.wrappers import Fault, FaultTransport

BEFORE = {"a": randn(300, 200, seed=1), "b": randn(300, 200, seed=2)}
AFTER = {"a": randn(300, 200, seed=3), "b": randn(300, 200, seed=4)}


class Replaces(FaultTransport):
    """Damages what is received first; puts another object in its place before it is read again."""

    def __init__(self, place: Place, key: str, other: bytes) -> None:
        super().__init__(place.transport, [Fault("get", body="flip", after=100_000, key=key)])
        self.place, self.key, self.other = place, key, other

    def reconnect(self) -> None:
        self.place.transport.put(self.place.bucket, self.key, self.other)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("origin", ["ours", "torch"])
@pytest.mark.parametrize("place", ["memory", "moto"], indirect=True)
def test_versions_are_not_mixed(place: Place, reader: str, origin: str, tmp_path: Path) -> None:
    """Of PyTorch's checkpoints the other version is sound by itself: its items verify."""
    states: dict[str, Any] = {"run": BEFORE, "other": AFTER}
    for path, state in states.items():
        if origin == "ours":
            place.save(state, path)
            continue
        with quiet():
            dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / path))
        place.copy_up(tmp_path / path, path)
    (key,) = (key for key in place.listing("run/") if not key.endswith(".metadata"))
    (other,) = (key for key in place.listing("other/") if not key.endswith(".metadata"))
    assert len(place.read(key)) == len(place.read(other))

    replaces = Replaces(place, key, place.read(other))
    with pytest.raises(CheckpointException) as caught:
        place.over(replaces).load(blank(BEFORE), "run", reader_constructor=reader)
    (error,) = failures(caught.value)
    assert replaces.struck == 1
    assert type(error) is ObjectChangedError
    assert (error.bucket, error.key) == (place.bucket, key)

    loaded = place.load(blank(BEFORE), "other", reader_constructor=reader)
    assert_same(loaded, AFTER)
