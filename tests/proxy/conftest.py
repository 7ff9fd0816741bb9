"""The proxy of these tests, and the scripted server behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.origin import Origin, origin

from torch_s3dcp.testing import FaultProxy


@pytest.fixture
def server() -> Iterator[Origin]:
    """Notes what gets through."""
    with origin() as running:
        yield running


@pytest.fixture
def proxy(server: Origin) -> Iterator[FaultProxy]:
    """Stands in front of ``server``, knows its keys, and keeps bodies."""
    keys = {"access_key": "known", "secret_key": "hidden-word"}
    with FaultProxy(server.endpoint_url, seed=5, keep_bodies=True, **keys) as running:
        yield running
