"""What a scripted server of these tests speaks."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from support.tls import settings_of, trust


@pytest.fixture(params=["http", "https"])
def context(
    request: pytest.FixtureRequest,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> ssl.SSLContext | None:
    """Plain HTTP, and TLS that clients trust, in turn."""
    if request.param == "http":
        return None
    trust(authority, tmp_path, monkeypatch)
    return settings_of(authority)
