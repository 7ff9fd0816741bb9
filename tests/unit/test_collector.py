"""The garbage collector is paused, and always goes on."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from torch_s3dcp import collector
from torch_s3dcp.collector import CollectorPause


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_it_is_paused_within() -> None:
    with CollectorPause():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_ends_the_pause() -> None:
    with pytest.raises(KeyError), CollectorPause():
        raise KeyError
    assert gc.isenabled()


def test_the_last_of_several_pauses_counts() -> None:
    first, second = CollectorPause(), CollectorPause()
    with first:
        with second:
            first.end()
            first.end()
            assert not gc.isenabled()
        assert gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with CollectorPause():
        pass
    assert not gc.isenabled()


def test_a_long_pause_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with CollectorPause() as pause:
        pause.end_if_long()
        assert not gc.isenabled()
        now = collector.time.monotonic()
        monkeypatch.setattr(collector.time, "monotonic", lambda: now + 60)
        pause.end_if_long()
        assert gc.isenabled()
