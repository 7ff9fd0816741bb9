"""What surrounds a save and a load: odd addresses, and processes that began as others."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from support.dcp import Place, assert_same, bits, blank, failures, randn
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp.exceptions import S3DCPError
from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import BotoTransport

STATE: dict[str, Any] = {"w": randn(600_000, seed=1), "ключ/π": randn(3, seed=2), "step": 3}
# The bytes of a path that a request must not take for its own.
ADDRESSES = [
    "ünï cödé/☃",
    "two  spaces",
    "a//b",
    "at the end///",
    "a+b%20c%2Fd",
    "a?b=c#d&e;f",
    "quotes'\"`",
    "back\\slash",
    "~!*'()@$,:=",
    "日本語",
    "..",
    "run/...",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_odd_address_is_taken_to_the_letter(on_moto: Place, address: str) -> None:
    on_moto.save(STATE, address)
    assert_same(on_moto.load(blank(STATE), address), STATE)
    below = address.rstrip("/") + "/"
    assert on_moto.listing(below + ".metadata") == [below + ".metadata"]
    assert len(on_moto.listing(below)) == len(on_moto.listing()) == 2


@pytest.mark.server
@pytest.mark.parametrize("address", ADDRESSES)
def test_an_odd_address_on_a_server_that_keeps_keys_as_paths(
    on_seaweed: Place, address: str
) -> None:
    if address == "..":
        with pytest.raises(CheckpointException) as raised:
            on_seaweed.save(STATE, address)
        assert isinstance(failures(raised.value)[0], S3DCPError)
        return
    on_seaweed.save(STATE, address)
    assert_same(on_seaweed.load(blank(STATE), address), STATE)


def _load_and_tell(end: Connection, place: Place) -> None:
    torch.set_num_threads(1)  # torch's own threads do not survive a fork
    loaded = place.load(blank(STATE), "run")
    # Of tensors a pipe carries handles only, which end with the process.
    end.send({name: bits(v) if name != "step" else v for name, v in loaded.items()})
    end.close()


@pytest.mark.server
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_loads_over_connections_of_its_own(
    on_seaweed: Place, seaweed: SeaweedServer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    place = on_seaweed.over(BotoTransport())  # keys given by hand go to no other process
    place.save(STATE, "run")
    assert_same(place.load(blank(STATE), "run"), STATE)  # connections are open now
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_load_and_tell, args=(theirs, place))
    child.start()
    theirs.close()
    try:
        assert ours.poll(120), "the child gave no answer"
        found = ours.recv()
    finally:
        child.kill()
        child.join()
    assert found == {name: bits(v) if name != "step" else v for name, v in STATE.items()}
    assert_same(place.load(blank(STATE), "run"), STATE)
