"""Nothing hostile runs; and the samples bite, since plain pickle runs most of them."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from campaigns import hostile, mutations
from campaigns._sandbox import OUT_OF_MEMORY, in_child

pytestmark = pytest.mark.timeout(300)


@pytest.mark.slow
def test_nothing_hostile_runs() -> None:
    # In a process that has not imported what the samples import.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        report = pool.submit(hostile.run, 1, 1).result()
    assert not report.violations, str(report)
    least = {"runs": 40, "imports": 10, "hangs": 8, "crashes": 5, "allocates": 12}
    for kind in ("metadata", "item", "tensor"):
        assert report.outcomes[f"{kind} refused"] >= 60, str(report)
        for effect, count in least.items() if kind != "tensor" else ():
            done = report.outcomes[f"{kind} that {effect} in the control"]
            assert done >= count, f"{done} {kind} {effect}: {report}"


ROOM = 2**30


@pytest.mark.parametrize(
    ("action", "effects"),
    [
        (lambda: str(importlib.import_module("this")), {"imported"}),
        (lambda: time.sleep(60) or "", {"hung"}),
        (lambda: os.abort() or "", {"crashed"}),
        (lambda: os._exit(0) or "", {"crashed"}),
        (lambda: str(len(bytearray(2 * ROOM))), {"allocated"}),
        (lambda: str(len(b"x" * (ROOM - 2**28))), {"allocated"}),
        (lambda: OUT_OF_MEMORY, {"allocated"}),
        (lambda: "well", set()),
        (lambda: str(1 // 0), set()),
    ],
)
def test_what_a_child_did_is_seen(action: Callable[[], str], effects: set[str]) -> None:
    ended = in_child(action, seconds=2, room=ROOM, lures=("this",))
    assert ended.effects == effects, str(ended)


def test_mutated_metadata() -> None:
    report = mutations.run(1, 300)
    assert not report.violations, str(report)
    assert report.runs == 300
    assert len(report.outcomes) >= 3, f"too few kinds of damage: {report}"
