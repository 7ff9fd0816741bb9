"""Seeded faults over saves and loads: the short form of the campaign."""

from __future__ import annotations

import pytest

from campaigns import faults

pytestmark = pytest.mark.server


def test_faults_end_in_success_or_in_a_typed_error() -> None:
    report = faults.run(seed=2, runs=30)
    assert not report.violations, str(report)
    assert report.runs == 30
    assert sum(n for name, n in report.outcomes.items() if not name.startswith("not struck")) > 15
