"""The garbage collector is paused, and always goes on."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

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


def test_it_says_how_long_it_should_last() -> None:
    pause = CollectorPause()
    assert pause.seconds_left is None
    with pause:
        assert pause.seconds_left is not None
        assert 0 < pause.seconds_left <= 2
        pause.end()
        assert gc.isenabled()
        assert pause.seconds_left is None


def test_entering_twice_is_one_pause() -> None:
    pause = CollectorPause()
    with pause, pause:
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_collects() -> None:
    with CollectorPause():
        child = os.fork()
        if not child:
            os._exit(0 if gc.isenabled() else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_one_that_nobody_ends_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_s3dcp.collector._LONGEST", 1.0)
    pause = CollectorPause()
    pause.begin()
    assert not gc.isenabled()
    deadline = time.monotonic() + 30
    while not gc.isenabled() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gc.isenabled()
    assert pause.seconds_left is None


def test_one_that_was_begun_can_be_ended() -> None:
    pause = CollectorPause()
    pause.begin()
    assert not gc.isenabled()
    pause.end()
    assert gc.isenabled()


def test_what_was_made_meanwhile_is_left_to_a_full_collection() -> None:
    with CollectorPause():
        made = [[n] for n in range(1000)]
    old = set(map(id, gc.get_objects(generation=2)))
    assert all(id(one) in old for one in made)


def test_garbage_that_was_made_meanwhile_is_found_later() -> None:
    class Node:
        pass

    with CollectorPause():
        node: Any = Node()
        node.itself = node
        alive = weakref.ref(node)
        del node
    assert alive() is not None
    gc.collect()
    assert alive() is None


def test_what_others_have_put_aside_stays_there() -> None:
    gc.freeze()
    try:
        aside = gc.get_freeze_count()
        assert aside > 0
        with CollectorPause():
            pass
        assert gc.get_freeze_count() >= aside - 100
    finally:
        gc.unfreeze()


def test_without_a_thread_to_end_it_there_is_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        CollectorPause().begin()
    assert gc.isenabled()
