"""Fixtures that all tests share: servers, buckets, and an environment without real credentials."""

from __future__ import annotations

import ctypes
import gc
import os
import secrets
from collections.abc import Iterator

import pytest
import trustme
from hypothesis import HealthCheck, settings
from support import canary

from torch_s3dcp.testing import SECRET_MARK
from torch_s3dcp.testing.servers import MotoServer, RcloneServer, S3Server, SeaweedServer

# Shared machines stall now and then: a time limit per example would fail good code.
settings.register_profile("ci", deadline=None, max_examples=100, print_blob=True)
settings.register_profile(
    "thorough",
    deadline=None,
    max_examples=2000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_SAFE_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": SECRET_MARK + "OfTheSuite",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    # Requests to loopback must not go through a proxy.
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def pytest_configure(config: pytest.Config) -> None:
    """Before any import of a test: no test may see, or use, the developer's AWS account."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(_SAFE_ENVIRONMENT)
    config.pluginmanager.register(canary, "canary")


@pytest.fixture(scope="module", autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    """The collector knows not how large tensors are, nor the allocator that nobody comes back.

    Without this, test processes grew to 6 GB.
    """
    yield
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """It certifies servers; nobody believes it before ``support.tls.trust``."""
    return trustme.CA()


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """A real S3 server; takes 3 s once per session."""
    with SeaweedServer() as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    """A fast server that checks little."""
    with MotoServer() as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server() -> Iterator[RcloneServer]:
    """A server without conditions and with wrong statuses."""
    with RcloneServer() as server:
        yield server


def _fresh_bucket(server: S3Server) -> Iterator[str]:
    name = "test-" + secrets.token_hex(8)
    server.create_bucket(name)
    yield name
    # SeaweedFS has room for about thirty buckets.
    server.delete_bucket(name)


@pytest.fixture
def seaweed_bucket(seaweed: SeaweedServer) -> Iterator[str]:
    """Name of an empty bucket on `seaweed`, deleted after the test."""
    yield from _fresh_bucket(seaweed)


@pytest.fixture
def moto_bucket(moto_server: MotoServer) -> Iterator[str]:
    """Name of an empty bucket on `moto_server`, deleted after the test."""
    yield from _fresh_bucket(moto_server)
