"""Savers race for one address: one of them wins, the others are told, nothing is mixed."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, failures, quiet, randn
from support.transports import Call, Tap, raise_on
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from torch_s3dcp import S3StorageWriter
from torch_s3dcp.exceptions import AccessDeniedError, CommitConflictError

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
# Savers and rounds. The last one takes minutes.
RACES = [(2, 10), (6, 3), *([(8, 70)] if THOROUGH else [])]
# Whether they may replace a checkpoint, in turn.
MAY_OVERWRITE = [(True,), (False,), (True, False)]


def model(saver: int) -> dict[str, Any]:
    return {"w": randn(1000, seed=saver), "b": randn(10, seed=100 + saver), "saver": saver}


class Start:
    """A hook for one saver: waits for the others before its first upload and its first PUT.

    At its first upload a saver has looked at what is there, and found it free to use.
    """

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier
        self._ahead = {"upload", "put"}

    def __call__(self, call: Call) -> None:
        if call.operation in self._ahead:
            self._ahead.remove(call.operation)
            self._barrier.wait(60)


def race(place: Place, path: str, savers: int, may_overwrite: tuple[bool, ...]) -> int:
    """Have them all save at once; returns who won. The others must have been told."""
    barrier = threading.Barrier(savers)
    outcomes: dict[int, BaseException | None] = {}

    def save(saver: int) -> None:
        racing = place.over(Tap(place.transport, before=Start(barrier)))
        overwrite = may_overwrite[saver % len(may_overwrite)]
        try:
            racing.save(model(saver), path, overwrite=overwrite)
            outcomes[saver] = None
        except CheckpointException as error:
            (outcomes[saver],) = failures(error)

    threads = [threading.Thread(target=save, args=(saver,)) for saver in range(savers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(outcomes) == savers
    (winner,) = [saver for saver, error in outcomes.items() if error is None]
    others = {type(error) for saver, error in outcomes.items() if saver != winner}
    assert others == {CommitConflictError}
    return winner


@pytest.mark.parametrize(
    "place", ["memory", pytest.param("seaweed", marks=pytest.mark.server)], indirect=True
)
@pytest.mark.parametrize("may_overwrite", MAY_OVERWRITE, ids=str)
@pytest.mark.parametrize(("savers", "rounds"), RACES)
@pytest.mark.timeout(900)
def test_one_of_many_savers_wins(
    place: Place, savers: int, rounds: int, may_overwrite: tuple[bool, ...]
) -> None:
    for number in range(rounds):
        # Those who may replace a checkpoint race over the last winner's.
        path = "run" if all(may_overwrite) else f"run-{number}"
        winner = race(place, path, savers, may_overwrite)
        assert_same(place.load(blank(model(winner)), path), model(winner))
        assert len(place.listing(f"{path}/")) == 2, "of the others nothing stays"


def test_what_torch_may_share_between_saves_is_not_changed_before_the_commit(
    memory: Place,
) -> None:
    """With cached plans all saves, overlapping ones among them, get one Metadata object."""
    seen: list[dict[str, Any]] = []

    class Watching(S3StorageWriter):
        def finish(self, metadata: Metadata, results: Any) -> None:
            before = dict(vars(metadata))
            try:
                super().finish(metadata, results)
            finally:
                seen.extend([before, dict(vars(metadata))])

    tap = Tap(memory.transport, before=raise_on("put", "", AccessDeniedError("no")))
    with pytest.raises(CheckpointException), quiet():
        dcp.save(model(1), storage_writer=Watching(memory.url("run"), transport=tap))
    before, after = seen
    assert after == before
