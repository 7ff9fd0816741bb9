"""How far a save is, told in a thread of its own."""

from __future__ import annotations

import threading

import pytest

from torch_s3dcp.progress import Progress
from torch_s3dcp.stats import SaveProgress


def test_the_last_state_is_told_and_none_goes_back() -> None:
    told: list[SaveProgress] = []
    with Progress(2, 100, told.append) as progress:
        for _ in range(50):
            progress.stored(2)
        progress.complete(40, 45)
        progress.complete(60, 55)
    assert told[-1] == SaveProgress(100, 100, 2, 2)
    assert [step.bytes_done for step in told] == sorted(step.bytes_done for step in told)


def test_nobody_waits_for_one_that_takes_its_time() -> None:
    told: list[SaveProgress] = []
    asked, go_on = threading.Event(), threading.Event()

    def slow(step: SaveProgress) -> None:
        told.append(step)
        asked.set()
        assert go_on.wait(60)

    with Progress(1, 10, slow) as progress:
        progress.stored(1)
        assert asked.wait(60)
        for _ in range(9):
            progress.stored(1)
        go_on.set()
    assert [step.bytes_done for step in told] == [1, 10], "the newest, not each"


def test_an_error_is_raised_where_the_save_is() -> None:
    def broken(_: SaveProgress) -> None:
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"), Progress(1, 10, broken) as progress:
        progress.stored(10)


def test_a_failed_save_does_not_wait_for_it() -> None:
    asked, never = threading.Event(), threading.Event()

    def stuck(_: SaveProgress) -> None:
        asked.set()
        never.wait(60)

    def save() -> None:
        with Progress(1, 10, stuck) as progress:
            progress.stored(1)
            assert asked.wait(60)
            raise KeyError

    with pytest.raises(KeyError):
        save()
    assert not never.is_set()
    never.set()


def test_without_a_callback_nothing_is_told() -> None:
    before = threading.active_count()
    with Progress(1, 10, None) as progress:
        progress.stored(10)
        assert threading.active_count() == before
