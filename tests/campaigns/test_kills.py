"""Processes that save are killed: the short form of the campaign."""

from __future__ import annotations

import pytest

from campaigns import kills

pytestmark = [pytest.mark.server, pytest.mark.multirank]


def test_what_loads_after_a_kill_is_the_old_one_or_the_new_one_or_nothing() -> None:
    report = kills.run(seed=3, runs=11)
    assert not report.violations, str(report)
    assert report.runs == 11
    assert set(report.outcomes) <= {"old", "new", "incomplete", "nothing there"}
    assert len(report.outcomes) > 2, "the kills came at different moments"
