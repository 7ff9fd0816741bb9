"""Where the tests of this folder save to and load from."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from support.dcp import Place, place_on
from support.devices import Cuda, Lazy, lazy_device, needs_cuda
from support.proxy import FaultProxy

from torch_s3dcp.testing.servers import MotoServer, S3Server, SeaweedServer
from torch_s3dcp.transports import MemoryTransport

PLACES = ["memory", "moto", pytest.param("seaweed", marks=pytest.mark.server)]


def _shared_bucket(server: S3Server) -> Iterator[str]:
    """One bucket for all tests: making and deleting one takes longer than most tests."""
    name = "pair-" + secrets.token_hex(6)
    server.create_bucket(name)
    yield name
    server.delete_bucket(name)


@pytest.fixture(scope="session")
def shared_on_seaweed(seaweed: SeaweedServer) -> Iterator[str]:
    yield from _shared_bucket(seaweed)


@pytest.fixture(scope="session")
def shared_on_moto(moto_server: MotoServer) -> Iterator[str]:
    yield from _shared_bucket(moto_server)


def _emptied(place: Place) -> Iterator[Place]:
    yield place
    place.transport.delete(place.bucket, place.listing())
    client = place.transport.client  # type: ignore[attr-defined]
    for upload in client.list_multipart_uploads(Bucket=place.bucket).get("Uploads", []):
        client.abort_multipart_upload(
            Bucket=place.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
        )


@pytest.fixture
def memory() -> Place:
    """A bucket in memory."""
    return Place("bucket", MemoryTransport("bucket"))


@pytest.fixture
def on_seaweed(seaweed: SeaweedServer, shared_on_seaweed: str) -> Iterator[Place]:
    """An empty bucket on a real server, with the smallest parts that S3 allows."""
    yield from _emptied(place_on(seaweed, shared_on_seaweed, part_size=5 * 1024**2))


@pytest.fixture
def on_moto(moto_server: MotoServer, shared_on_moto: str) -> Iterator[Place]:
    """An empty bucket on moto."""
    yield from _emptied(place_on(moto_server, shared_on_moto))


@pytest.fixture
def proxy(seaweed: SeaweedServer) -> Iterator[FaultProxy]:
    """Stands in front of the real server and lets requests fail."""
    with FaultProxy(seaweed.endpoint_url) as running:
        yield running


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    """A bucket in memory, on moto, and on a real server, in turn."""
    names = {"memory": "memory", "moto": "on_moto", "seaweed": "on_seaweed"}
    found: Place = request.getfixturevalue(names[request.param])
    return found


@pytest.fixture(params=[*range(8), pytest.param("cuda", marks=needs_cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[Lazy | Cuda]:
    """The model, with several seeds, and CUDA."""
    if request.param == "cuda":
        yield Cuda()
    else:
        with lazy_device(request.param) as lazy:
            yield lazy
