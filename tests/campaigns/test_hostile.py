"""Nothing hostile runs; and the samples bite, since plain pickle runs most of them."""

from __future__ import annotations

import pytest

from campaigns import hostile, mutations

pytestmark = pytest.mark.timeout(300)


@pytest.mark.slow
def test_nothing_hostile_runs() -> None:
    report = hostile.run(1, 1)
    assert not report.violations, str(report)
    for kind in ("metadata", "item"):
        assert report.outcomes[f"{kind} refused"] >= 60, str(report)
        assert report.outcomes[f"{kind} that plain pickle runs"] >= 40, str(report)


def test_mutated_metadata() -> None:
    report = mutations.run(1, 300)
    assert not report.violations, str(report)
    assert report.runs == 300
    assert len(report.outcomes) >= 3, f"too few kinds of damage: {report}"
