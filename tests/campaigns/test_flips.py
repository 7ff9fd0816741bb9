"""Flipped bits are detected and repaired, and nothing else is: the short form of the campaign."""

from __future__ import annotations

import pytest

from campaigns import flips

pytestmark = pytest.mark.server


def test_flips_are_detected_and_repaired() -> None:
    report = flips.run(seed=1, runs=20)
    assert not report.violations, str(report)
    assert report.outcomes["clean: ok"] == 20
    assert sum(n for name, n in report.outcomes.items() if name.endswith(" once: ok")) > 5
