"""Where the tests of this folder save to and load from."""

from __future__ import annotations

import pytest
from support.dcp import Place, place_on

from torch_s3dcp.testing.servers import MotoServer, SeaweedServer
from torch_s3dcp.transports import MemoryTransport

PLACES = ["memory", "moto", pytest.param("seaweed", marks=pytest.mark.server)]


@pytest.fixture
def memory() -> Place:
    """A bucket in memory."""
    return Place("bucket", MemoryTransport("bucket"))


@pytest.fixture
def on_seaweed(seaweed: SeaweedServer, seaweed_bucket: str) -> Place:
    """A bucket on a real server, with the smallest parts that S3 allows."""
    return place_on(seaweed, seaweed_bucket, part_size=5 * 1024**2)


@pytest.fixture
def on_moto(moto_server: MotoServer, moto_bucket: str) -> Place:
    """A bucket on moto."""
    return place_on(moto_server, moto_bucket)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    """A bucket in memory, on moto, and on a real server, in turn."""
    names = {"memory": "memory", "moto": "on_moto", "seaweed": "on_seaweed"}
    found: Place = request.getfixturevalue(names[request.param])
    return found
