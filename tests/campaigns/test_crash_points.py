"""Points at which a save may die: the short form of the campaign, and that it can tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns import crash_points
from campaigns._saves import NEW, OLD, Save, store
from campaigns._steps import Step
from campaigns.report import Report
from torch_s3dcp.transports import MemoryTransport


@pytest.mark.server
def test_every_crash_point_leaves_the_old_one_the_new_one_or_an_incomplete_one() -> None:
    report = crash_points.run(seed=1, runs=3)
    assert not report.violations, str(report)
    kinds = ("old", "new", "incomplete", "nothing there")
    assert all(report.outcomes[kind] for kind in kinds)
    assert all(report.outcomes[f"{kind}, on the server"] for kind in kinds)


@pytest.fixture
def recorded() -> tuple[list[Step], list[Step]]:
    """Puts of an old checkpoint; a new one over it: its puts, then deletions, one after another."""
    transport = MemoryTransport("crash")

    def objects() -> dict[str, bytes]:
        keys = [info.key for page in transport.list("crash") for info in page.object_info]
        return {key: transport.get("crash", key).readall() for key in keys}

    store(transport, "s3://crash/run", OLD, False, thread_count=2)
    old = objects()
    store(transport, "s3://crash/run", NEW, False, thread_count=2)
    new = objects()
    data = [key for key in new if not key.endswith(".metadata")]
    order = [
        *(("put", key) for key in [*data, "run/.metadata"]),
        *(("delete", key) for key in old if key not in new),
    ]
    assert [kind for kind, _ in order] == ["put"] * 3 + ["delete"] * 2
    return (
        [Step("put", key, 0, 0, body=body) for key, body in old.items()],
        [
            Step(kind, key, number, number + 0.5, body=new.get(key, b""))
            for number, (kind, key) in enumerate(order, 1)
        ],
    )


def judged(before: list[Step], steps: list[Step], folder: Path) -> Report:
    report = Report("crash points", "R3", 1)
    judge = crash_points.Judge(Save("over"), steps, folder, report)
    crash_points.in_memory(judge, before, steps, report)
    return report


def test_a_save_in_the_right_order(recorded: tuple[list[Step], list[Step]], tmp_path: Path) -> None:
    report = judged(*recorded, tmp_path / "local")
    assert not report.violations, str(report)
    # Two files in any order, then the commit, then two deletions in any order.
    assert report.outcomes == {"old": 4, "new": 4}


def test_data_after_the_commit_is_noticed(
    recorded: tuple[list[Step], list[Step]], tmp_path: Path
) -> None:
    before, (one, other, commit, *deletions) = recorded
    late = Step("put", other.key, 3.6, 3.8, body=other.body)
    report = judged(before, [one, commit, late, *deletions], tmp_path / "local")
    assert report.outcomes == {"old": 2, "violated": 4, "new": 4}
    assert "VIOLATION over, after ['put run/__0_0_" in str(report)


def test_deletion_before_the_commit_is_noticed(
    recorded: tuple[list[Step], list[Step]], tmp_path: Path
) -> None:
    before, (one, other, commit, *deletions) = recorded
    early = [Step("delete", step.key, 0.1, 0.2) for step in deletions]
    report = judged(before, [*early, one, other, commit], tmp_path / "local")
    assert report.outcomes == {"old": 4, "violated": 12, "new": 1}
    assert "VIOLATION over, after ['delete run/__0_" in str(report)
