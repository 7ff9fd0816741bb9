"""Savers race for one address: the short form of the campaign."""

from __future__ import annotations

import pytest

from campaigns import races

pytestmark = [pytest.mark.server, pytest.mark.multirank]


def test_one_of_eight_wins_and_readers_see_no_mixture() -> None:
    report = races.run(seed=1, runs=4)
    assert not report.violations, str(report)
    assert report.outcomes["one winner"] == report.runs == 4
    assert report.outcomes["loads that got old"] + report.outcomes["loads that got new"] > 0
